"""Real images in two versions, built by buildah out of this machine's own files."""

from __future__ import annotations

import fcntl
import io
import random
import shutil
import subprocess
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIBRARY = Path(sysconfig.get_path("stdlib"))
_OLD, _NEW = 1_700_000_000, 1_710_000_000
"""File times of the two versions, seconds since 1970."""


@dataclass(frozen=True)
class ImagePair:
    """An OCI layout that holds two versions of an image, tagged ``v1`` and ``v2``."""

    name: str
    layout: Path

    @property
    def baseline(self) -> str:
        return f"oci:{self.layout}:v1"

    @property
    def target(self) -> str:
        return f"oci:{self.layout}:v2"


@dataclass(frozen=True)
class ImagePairs:
    """The pairs of one test run.

    Attributes:
        small_change: a base and a large layer that stay, a small one on top that changes.
        big_change: the large layer changes in a few of its files, as after an upgrade.
    """

    small_change: ImagePair
    big_change: ImagePair

    def __iter__(self) -> Iterator[ImagePair]:
        return iter((self.small_change, self.big_change))


def build_pairs(buildah: str, folder: Path) -> ImagePairs:
    """The pairs in ``folder``, built if they are not there; safe in several processes at a time.

    Raises:
        subprocess.CalledProcessError: buildah cannot work here; ``stderr`` says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = ImagePairs(ImagePair("small-change", folder / "small-change"), ImagePair("big-change", folder / "big-change"))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _build(buildah, folder, pairs)
            (folder / "done").touch()
    return pairs


def _build(buildah: str, folder: Path, pairs: ImagePairs) -> None:
    work = folder / "work"
    tars = {
        "base": _base_layer(),
        "library-1": _library_layer(1),
        "library-2": _library_layer(2),
        "code-1": _code_layer(1),
        "code-2": _code_layer(2),
    }
    work.mkdir()
    for name, content in tars.items():
        (work / f"{name}.tar").write_bytes(content)

    def run(*arguments: str) -> str:
        command = [buildah, "--storage-driver", "vfs", "--root", str(work / "root"), "--runroot", str(work / "runroot"), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300).stdout.strip()

    def image(parent: str, layer: str, name: str) -> str:
        container = run("from", "--quiet", parent)
        run("add", "--quiet", container, str(work / f"{layer}.tar"), "/")
        run("config", "--os", "linux", "--arch", "amd64", "--entrypoint", '["/app/run"]', "--env", "LANG=C.UTF-8", "--label", f"layer={layer}", container)
        run("commit", "--quiet", "--rm", container, name)
        return name

    base = image("scratch", "base", "base")
    library = {version: image(base, f"library-{version}", f"library:{version}") for version in (1, 2)}
    old = image(library[1], "code-1", "app:1")
    for pair, below in ((pairs.small_change, library[1]), (pairs.big_change, library[2])):
        new = image(below, "code-2", f"{pair.name}:2")
        for name, tag in ((old, "v1"), (new, "v2")):
            run("push", "--quiet", name, f"oci:{pair.layout}:{tag}")
    shutil.rmtree(work)


class _Layer:
    """A layer's tar while it is filled."""

    def __init__(self, mtime: int) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by content()
        self._mtime = mtime

    def add(self, name: str, content: bytes = b"", *, mode: int = 0o644, type: bytes = tarfile.REGTYPE, link: str = "") -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime, info.type, info.linkname = len(content), mode, self._mtime, type, link
        self._tar.addfile(info, io.BytesIO(content))

    def content(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def _base_layer() -> bytes:
    layer = _Layer(_OLD)
    layer.add("etc", type=tarfile.DIRTYPE, mode=0o755)
    layer.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    layer.add("tmp", type=tarfile.DIRTYPE, mode=0o1777)
    for module in sorted((_LIBRARY / "encodings").glob("*.py")):
        layer.add(f"usr/share/encodings/{module.name}", module.read_bytes())
    layer.add("usr/share/default", type=tarfile.SYMTYPE, link="encodings/utf_8.py")
    layer.add("usr/share/encodings/same.py", type=tarfile.LNKTYPE, link="usr/share/encodings/utf_8.py")
    layer.add("usr/share/" + "long-name/" * 12 + "é.txt", "naïve\n".encode())
    layer.add("usr/share/empty")
    return layer.content()


def _library_layer(version: int) -> bytes:
    """The standard library's modules; in version 2 all were installed anew and some are others."""
    layer = _Layer(_OLD if version == 1 else _NEW)
    modules = [
        path
        for folder in (".", "asyncio", "email", "unittest", "lib-dynload")
        for path in sorted((_LIBRARY / folder).glob("*"))
        if path.suffix in (".py", ".so")
    ]
    for place, path in enumerate(modules):
        name = f"usr/lib/python/{path.relative_to(_LIBRARY)}"
        content = path.read_bytes()
        if version == 2 and place % 40 == 1:
            continue
        if version == 2 and place % 10 == 0:
            content = content.replace(b"return", b"return ", 3) + b"\n# upgraded\n"
        layer.add(name, content)
    return layer.content()


def _code_layer(version: int) -> bytes:
    """An application of 60 modules, one in nine of which changes."""
    layer = _Layer(_OLD if version == 1 else _NEW)
    layer.add("app", type=tarfile.DIRTYPE, mode=0o755)
    layer.add("app/run", b"#!/bin/sh\nexec true\n", mode=0o755)
    layer.add("app/VERSION", f"{version}.0.0\n".encode())
    for module in range(60):
        chance = random.Random(module if module % 9 else module * 1000 + version)
        lines = [f"def handler_{chance.randrange(10**9)}(request):\n    return {chance.randrange(10**9)}, request\n" for _ in range(100)]
        layer.add(f"app/module_{module:02}.py", "".join(lines).encode())
    return layer.content()
