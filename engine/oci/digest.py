"""Digests (image-spec 1.1, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Protocol

from prefect_diffah.engine.errors import DigestMismatch, InvalidReference, SizeMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["Digest", "verified"]

_LENGTHS = {"sha256": 64, "sha512": 128}
_SYNTAX = re.compile(r"(sha256|sha512):([0-9a-f]+)", re.ASCII)


class Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Digest(str):
    """``algorithm:hex``, checked once when made: sha256 or sha512, lower case, whole.

    It is a string, so that it is JSON and a dictionary key as it stands; since
    it matched, it is also safe as a path component.

    Raises:
        InvalidReference: for anything else.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        if type(text) is cls:
            return text
        match = _SYNTAX.fullmatch(text) if isinstance(text, str) else None
        if match is None or len(match[2]) != _LENGTHS[match[1]]:
            raise InvalidReference(
                f"not a digest: {str(text)[:200]!r}", next_action="A digest is sha256: and 64, or sha512: and 128, lower-case hexadecimal digits."
            )
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first twelve hexadecimal digits, for people."""
        return self.hex[:12]

    def hasher(self) -> Hasher:
        """A new hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` has this digest."""
        return Digest.of(data, self.algorithm) == self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def parse(text: str) -> Digest:
            try:
                return cls(text)
            except InvalidReference as error:
                raise PydanticCustomError("digest", "{message}", {"message": error.message}) from error

        return core_schema.no_info_after_validator_function(
            parse, core_schema.str_schema(), serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )


def verified(chunks: Iterable[bytes], digest: Digest, size: int, what: str = "blob") -> Iterator[bytes]:
    """``chunks`` unchanged, checked against ``digest`` and ``size`` as they pass.

    Never hands on more than ``size`` bytes; the checks have passed when the
    iterator ends without raising.

    Raises:
        SizeMismatch: more or fewer bytes than ``size``.
        DigestMismatch: the bytes are not those of ``digest``.
    """
    hasher, seen = digest.hasher(), 0
    for chunk in chunks:
        seen += len(chunk)
        if seen > size:
            raise SizeMismatch(f"{what} {digest} is longer than the {size} bytes declared", digest=digest, declared=size)
        hasher.update(chunk)
        yield chunk
    if seen < size:
        raise SizeMismatch(f"{what} {digest} ends after {seen} of {size} bytes", digest=digest, declared=size, actual=seen)
    actual = f"{digest.algorithm}:{hasher.hexdigest()}"
    if actual != digest:
        raise DigestMismatch(f"{what} {digest} has the digest {actual}", digest=digest, actual=actual, size=size)
