"""OCI image layouts (image-spec 1.1, image-layout.md), in whatever holds their files."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self

from prefect_diffah.engine.errors import (
    ContentError,
    DiffahError,
    InvalidArchive,
    InvalidOptions,
    NotFound,
    SizeMismatch,
    UnsupportedVersion,
)
from prefect_diffah.engine.oci import MAX_MANIFEST, Descriptor, Digest, Index, Reference, mediatypes, parse_document, verified
from prefect_diffah.engine.oci.documents import load_json
from prefect_diffah.engine.storage import FileLocation, chunks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from prefect_diffah.engine.transports.base import OutgoingImage

__all__ = [
    "IMAGE_NAME",
    "INDEX",
    "LAYOUT",
    "LAYOUT_CONTENT",
    "REF_NAME",
    "Files",
    "FolderFiles",
    "LayoutReader",
    "Opened",
    "blob_name",
    "checked",
    "full_name",
    "index_entry",
    "layout_notes",
    "new_index",
    "parse_index",
    "read_document",
    "require_digest",
    "require_layout_version",
    "tag_of",
    "tagged",
]

INDEX, LAYOUT = "index.json", "oci-layout"
LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"


class Opened:
    """What readers and writers share: closed at the end of a ``with`` block."""

    def close(self) -> None:
        """Release what is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Files(Protocol):
    """Named files: those of a folder, or the members of an archive."""

    @property
    def location(self) -> FileLocation: ...
    def size(self, name: str) -> int | None:
        """Bytes; None if there is no such file."""

    def chunks(self, name: str) -> Generator[bytes]:
        """Its content. Raises: NotFound."""

    def read(self, name: str, limit: int) -> bytes:
        """Its content, whole. Raises: NotFound; SizeMismatch over ``limit`` bytes."""

    def close(self) -> None: ...


class FolderFiles:
    """The files of a folder on any filesystem."""

    def __init__(self, location: FileLocation) -> None:
        self.location = location

    def size(self, name: str) -> int | None:
        try:
            return self.location.child(name).size()
        except NotFound:
            return None

    def chunks(self, name: str) -> Generator[bytes]:
        place = self.location.child(name)
        with place.translated("read"), place.open() as file:
            yield from chunks_of(file)

    def read(self, name: str, limit: int) -> bytes:
        content = self.location.child(name).read(limit + 1)
        if len(content) > limit:
            raise SizeMismatch(f"{name} in {self.location} is over the limit of {limit} bytes", member=name, limit=limit)
        return content

    def close(self) -> None:
        pass


class LayoutReader(Opened):
    """Images of a layout: an ``ImageReader``.

    Args:
        files: read until ``close``, and closed with it.
        reference: whose tag or digest chooses the image.

    Raises:
        NotFound: nothing is there.
        InvalidArchive, InvalidDocument, UnsupportedVersion: it is no layout that can be read.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, files: Files, reference: Reference) -> None:
        self._files, self._reference = files, reference
        require_layout_version(files)
        self._entries = parse_index(files.read(INDEX, MAX_MANIFEST)).manifests

    def entries(self) -> Sequence[Descriptor]:
        return self._entries

    def root(self) -> tuple[Descriptor, bytes]:
        chosen = self._chosen()
        return chosen, self.document(chosen)

    def document(self, descriptor: Descriptor) -> bytes:
        return read_document(self.stream, descriptor)

    def holds(self, descriptor: Descriptor) -> bool:
        return self._files.size(blob_name(descriptor.digest)) == descriptor.size

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        name = blob_name(descriptor.digest)
        if self._files.size(name) is None:
            raise NotFound(f"{self._files.location} has no blob {descriptor.digest}", digest=descriptor.digest, path=str(self._files.location))
        with checked(self._files.chunks(name), descriptor) as chunks:
            yield chunks

    def close(self) -> None:
        self._files.close()

    def _chosen(self) -> Descriptor:
        tag, digest, where = self._reference.tag, self._reference.digest, self._files.location
        candidates: Sequence[Descriptor] = self._entries
        if tag is not None:
            candidates = _tagged_entries(self._entries, tag)
            if not candidates:
                raise NotFound(f"{where} has no image {tag}; {self._listing()}", path=str(where), tag=tag)
        if digest is not None:
            named, candidates = candidates, [entry for entry in candidates if entry.digest == digest]
            if not candidates and tag is not None:
                raise NotFound(f"{tag} in {where} is {named[0].digest}, not {digest}", path=str(where), tag=tag, digest=digest)
            if not candidates:
                return self._inner(digest)
        if len({entry.digest for entry in candidates}) > 1:
            raise InvalidOptions(
                f"{where} holds several images; {self._listing()}",
                next_action="Choose one: append :TAG or @DIGEST to the reference.",
                path=str(where),
                tags=[name for entry in self._entries if (name := entry.annotations.get(REF_NAME))],
            )
        if not candidates:
            raise NotFound(f"{where} holds no image", path=str(where))
        return candidates[0]

    def _inner(self, digest: Digest) -> Descriptor:
        """A manifest that index.json does not list itself, such as one below an index."""
        where = self._files.location
        size = self._files.size(blob_name(digest))
        if size is None or size > MAX_MANIFEST:
            raise NotFound(f"{where} has no image {digest}", path=str(where), digest=digest)
        raw = self.document(Descriptor(media_type="", digest=digest, size=size))
        try:
            return parse_document(raw).descriptor(digest.algorithm)
        except ContentError as error:
            raise NotFound(f"{digest} in {where} is no manifest", path=str(where), digest=digest) from error

    def _listing(self) -> str:
        names = [entry.annotations.get(REF_NAME) or entry.annotations.get(IMAGE_NAME) or f"@{entry.digest}" for entry in self._entries]
        return "it has: " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def require_layout_version(files: Files) -> None:
    """Raises: NotFound when nothing is there, InvalidArchive when it is no layout, UnsupportedVersion."""
    where = files.location
    try:
        raw = files.read(LAYOUT, 64 * 1024)
    except NotFound as error:
        if isinstance(files, FolderFiles) and not where.exists():
            raise NotFound(f"{where} is not there", path=str(where)) from error
        raise InvalidArchive(
            f"{where} is not an OCI image layout: it has no {LAYOUT}",
            next_action="Check what it is: an archive of `docker save` is docker-archive:, skopeo's plain folder is dir:.",
            path=str(where),
        ) from error
    version = load_json(raw, LAYOUT).get("imageLayoutVersion")
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise UnsupportedVersion(
            f"{where} is an OCI image layout of version {version!r}; only 1.x is known", next_action="Copy the image with a current tool.", path=str(where)
        )


def parse_index(raw: bytes) -> Index:
    """An index.json. Raises: InvalidDocument, SizeMismatch, Unsupported."""
    data = load_json(raw, INDEX)
    if "manifests" in data and data["manifests"] is None:
        # Go's empty list, as umoci writes it
        raw = json.dumps(data | {"manifests": []}).encode()
    index = parse_document(raw, mediatypes.OCI_INDEX)
    assert isinstance(index, Index)
    return index


def _tagged_entries(entries: Sequence[Descriptor], tag: str) -> list[Descriptor]:
    """The entries that go by ``tag``: by the layout's own name for them, else by a whole image name or its tag."""

    def names(entry: Descriptor) -> list[str]:
        return [name for key in (IMAGE_NAME, REF_NAME) if (name := entry.annotations.get(key))]

    wanted = full_name(tag)
    rules: list[Callable[[Descriptor], bool]] = [
        lambda entry: entry.annotations.get(REF_NAME) == tag,
        lambda entry: any(name == tag or (wanted is not None and full_name(name) == wanted) for name in names(entry)),
        lambda entry: any("/" in name and name.rpartition("/")[2].partition(":")[2] == tag for name in names(entry)),
    ]
    return next((found for rule in rules if (found := [entry for entry in entries if rule(entry)])), [])


def full_name(name: str) -> str | None:
    """``app:v2`` as Docker writes it in full, ``docker.io/library/app:v2``; None if it is no image name."""
    try:
        reference = Reference.parse(f"docker://{name}")
    except DiffahError:
        return None
    return None if reference.digest else str(reference).removeprefix("docker://")


def blob_name(digest: Digest) -> str:
    """Where a layout keeps a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


@contextmanager
def checked(chunks: Generator[bytes] | Iterator[bytes], descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
    """``chunks`` verified against ``descriptor``, and closed at the end of the block."""
    try:
        yield verified(chunks, descriptor.digest, descriptor.size)
    finally:
        if (close := getattr(chunks, "close", None)) is not None:
            close()


def read_document(stream: Callable[[Descriptor], AbstractContextManager[Iterator[bytes]]], descriptor: Descriptor) -> bytes:
    """A document, whole, from a ``BlobSource``'s stream. Raises: SizeMismatch over 4 MiB."""
    if descriptor.size > MAX_MANIFEST:
        raise SizeMismatch(
            f"document {descriptor.digest} of {descriptor.size} bytes is over the limit of {MAX_MANIFEST}", digest=descriptor.digest, size=descriptor.size
        )
    with stream(descriptor) as chunks:
        return b"".join(chunks)


def tag_of(image: OutgoingImage, reference: Reference) -> str:
    """What a layout shall call the image: the reference's tag, else that of its name."""
    return reference.tag or image.name.rpartition("/")[2].partition(":")[2] or "latest"


def require_digest(image: OutgoingImage, reference: Reference) -> None:
    """Raises: InvalidOptions when the reference of an output names another digest than the image's."""
    if reference.digest is not None and reference.digest != image.root.digest:
        raise InvalidOptions(
            f"the output {reference} names a digest that the image does not have: it is {image.root.digest}",
            next_action="Leave the digest out of the output.",
            expected=reference.digest,
            actual=image.root.digest,
        )


def index_entry(image: OutgoingImage, annotations: dict[str, str]) -> dict[str, Any]:
    """The image's entry for index.json."""
    entry: dict[str, Any] = {"mediaType": image.root.media_type, "digest": str(image.root.digest), "size": image.root.size}
    if image.root.artifact_type:
        entry["artifactType"] = image.root.artifact_type
    if image.root.platform:
        entry["platform"] = {key: value for key, value in image.root.platform.model_dump().items() if value}
    return entry | {"annotations": annotations}


def layout_notes(image: OutgoingImage) -> tuple[str, ...]:
    """What the user should know of the image in a layout."""
    if image.root.media_type in (mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_INDEX):
        return (
            "this is a Docker manifest in an OCI layout: skopeo and podman find it only where the reference names no tag and the layout holds nothing else",
        )
    return ()


def new_index(entries: Iterable[dict[str, Any]]) -> bytes:
    """An index.json of these entries."""
    return json.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": list(entries)}, separators=(",", ":")).encode()


def tagged(index: bytes, entry: dict[str, Any]) -> bytes:
    """``index`` with ``entry`` in it, and its tag moved there from any other entry.

    As skopeo does it: the entry that had the tag stays without it, an entry of
    the same digest without a tag is replaced, and everything else is kept,
    members that are not known here included.

    Raises:
        InvalidDocument, Unsupported: ``index`` is no index.
    """
    parse_index(index)
    data = load_json(index, INDEX)
    tag, kept = entry["annotations"][REF_NAME], []
    for other in data["manifests"] or []:
        if (other.get("annotations") or {}).get(REF_NAME) == tag:
            other["annotations"].pop(REF_NAME)
            if not other["annotations"]:
                del other["annotations"]
        if other["digest"] == entry["digest"] and REF_NAME not in (other.get("annotations") or {}):
            continue
        kept.append(other)
    return json.dumps(data | {"manifests": [*kept, entry]}, separators=(",", ":"), ensure_ascii=False).encode()
