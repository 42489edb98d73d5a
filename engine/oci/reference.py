"""Image references: ``transport:where[:tag][@digest]``, as skopeo writes them.

    docker://[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]
    oci:PATH[:TAG][@DIGEST]              an image layout, a folder
    oci-archive:PATH[:TAG][@DIGEST]      the same in a tar
    docker-archive:PATH[:NAME[:TAG]]     what `docker save` writes
    dir:PATH                             skopeo's plain folder

PATH may be an fsspec URL; such a URL ends at the first ``:`` after its ``//``.
"""

from __future__ import annotations

import difflib
import re
from typing import Literal, get_args

from prefect_diffah.engine.errors import InvalidReference, Unsupported
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci.digest import Digest

__all__ = ["FileTransport", "Reference", "Transport", "refuse_userinfo"]

Transport = Literal["docker", "docker-archive", "oci-archive", "oci", "dir"]
FileTransport = Literal["docker-archive", "oci-archive", "oci", "dir"]
TRANSPORTS: tuple[str, ...] = get_args(Transport)

_ELSEWHERE = ("containers-storage", "docker-daemon", "ostree", "sif", "tarball", "atomic")
# distribution/reference, "reference.go"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.ASCII)


class Reference(Model):
    """One place where an image is, or shall be.

    ``where`` is ``host[:port]/repository`` for ``docker``, a path or fsspec URL
    otherwise. For ``docker-archive`` the tag is a whole name, ``app:v2``.
    """

    transport: Transport
    where: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises: InvalidReference, with a hint at what was probably meant; Unsupported for transports of others."""
        refuse_userinfo(text)
        prefix, colon, rest = text.partition(":")
        if colon and prefix in TRANSPORTS:
            if prefix == "docker":
                return cls._registry(text, rest)
            return cls._file(text, prefix, rest)  # type: ignore[arg-type]
        if colon and prefix in _ELSEWHERE:
            raise Unsupported(f"{prefix}: is not a transport of this tool", next_action=f"Save the image first: skopeo copy {text} oci-archive:image.tar")
        raise InvalidReference(f"not an image reference: {text[:300]!r}", next_action=_hint(text, prefix if colon else ""))

    @classmethod
    def of_file(cls, text: str, transport: FileTransport) -> Reference:
        """``text`` as given where a plain path is allowed: a reference if it has a transport, else a path."""
        prefix, colon, _ = text.partition(":")
        if colon and (prefix in TRANSPORTS or prefix in _ELSEWHERE):
            return cls.parse(text)
        if not text:
            raise InvalidReference("an empty path", next_action="Give a path, an fsspec URL, or a reference with a transport.")
        refuse_userinfo(text)
        if colon and not text.startswith((".", "/")) and difflib.get_close_matches(prefix, TRANSPORTS, n=1, cutoff=0.7):
            raise InvalidReference(f"{prefix}: is not a transport", next_action=f"{_hint(text, prefix)} For a file of this name write ./{text}.")
        return cls(transport=transport, where=text)

    @classmethod
    def _registry(cls, text: str, rest: str) -> Reference:
        def bad(why: str, hint: str = "Write docker://HOST/REPOSITORY:TAG or …@DIGEST.") -> InvalidReference:
            return InvalidReference(f"{why} in {text[:300]!r}", next_action=hint)

        if not rest.startswith("//") or rest.startswith("///"):
            raise bad("no // after docker:", f"Write docker://{rest.lstrip('/')}")
        name, at, digest = rest[2:].partition("@")
        tag = None
        if ":" in name.rpartition("/")[2]:
            name, _, tag = name.rpartition(":")
            if not _TAG.fullmatch(tag):
                raise bad(f"{tag!r} is not a tag")
        host, slash, repository = name.partition("/")
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            host, repository = "docker.io", name
        if host in ("docker.io", "index.docker.io"):
            host, repository = "docker.io", repository if "/" in repository else f"library/{repository}"
        if not _HOST.fullmatch(host):
            raise bad(f"{host!r} is not a host")
        if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
            raise bad(f"{repository!r} is not a repository name", "Repository names are lower-case letters, digits and . _ - / between them.")
        return cls(transport="docker", where=f"{host}/{repository}", tag=tag or (None if at else "latest"), digest=Digest(digest) if at else None)

    @classmethod
    def _file(cls, text: str, transport: Transport, rest: str) -> Reference:
        digest = None
        if transport != "dir" and (found := re.search(r"@((?:sha256|sha512):[^@]*)$", rest)):
            rest, digest = rest[: found.start()], Digest(found[1])
        url = _URL.match(rest)
        start = url.end() if url else 0
        where, tag = rest, ""
        if transport != "dir":
            end = rest.find(":", start)
            where, tag = (rest, "") if end < 0 else (rest[:end], rest[end + 1 :])
        if not where[start:]:
            raise InvalidReference(f"no path in {text[:300]!r}", next_action=f"Write {transport}:PATH" + ("." if transport == "dir" else "[:TAG]."))
        if any(ord(character) < 32 for character in text):
            raise InvalidReference(f"a control character in {text[:300]!r}")
        return cls(transport=transport, where=where, tag=tag or None, digest=digest)

    @property
    def registry(self) -> str:
        """``host[:port]`` of a docker reference."""
        return self.where.partition("/")[0]

    @property
    def repository(self) -> str:
        """The repository path of a docker reference."""
        return self.where.partition("/")[2]

    @property
    def short_name(self) -> str:
        """Last path component and tag, without host or folder: what others may see."""
        last = self.where.rstrip("/").rpartition("/")[2]
        if self.transport == "docker":
            return f"{last}:{self.tag}" if self.tag else last
        if self.tag:
            name = self.tag.rpartition("/")[2]
            return name if self.transport == "docker-archive" or ":" in name else f"{_component(last)}:{name}"
        return _component(last)

    def __str__(self) -> str:
        slashes = "//" if self.transport == "docker" else ""
        return f"{self.transport}:{slashes}{self.where}" + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def refuse_userinfo(text: str) -> None:
    """Raises: InvalidReference when a URL carries credentials, which would be stored and shown wherever it goes."""
    if re.search(r"//[^/@\s]*@", text) and not re.search(r"//[^/@\s]*@sha(256|512):", text):
        raise InvalidReference(
            "a reference or URL with credentials in it",
            next_action="Leave them out, and give them by --creds-env, an authfile, or a block with storage options.",
        )


def _component(file_name: str) -> str:
    stem = re.sub(r"\.(tar|tgz|tar\.gz)$", "", file_name.lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-") or "image"


def _hint(text: str, prefix: str) -> str:
    if prefix:
        near = difflib.get_close_matches(prefix.rstrip("/"), TRANSPORTS, n=1)
        if near:
            return f"Did you mean {near[0]}:{text.partition(':')[2]} ?"
    if text.startswith(("http://", "https://")):
        return f"Did you mean docker://{text.partition('//')[2]} ?"
    if re.search(r"\.(tar|tar\.gz|tgz)$", text) or text.startswith((".", "/")):
        return f"Did you mean oci-archive:{text} or docker-archive:{text} ?"
    return f"Did you mean docker://{text} ? A reference starts with docker://, docker-archive:, oci-archive:, oci: or dir:."
