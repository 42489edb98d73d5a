"""Platforms, named, normalized and matched as containerd does it (platforms/platforms.go, compare.go)."""

from __future__ import annotations

import re

from prefect_diffah.engine.errors import InvalidReference
from prefect_diffah.engine.model import Model

__all__ = ["Platform"]

_PART = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_ARCHITECTURES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}


class Platform(Model):
    """Operating system, architecture and variant (image-spec, image-index.md)."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    model_config = {"alias_generator": lambda name: {"os_version": "os.version"}.get(name, name)}

    @classmethod
    def parse(cls, text: str) -> Platform:
        """``os/architecture[/variant]``, normalized.

        Raises:
            InvalidReference: any other form.
        """
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidReference(f"not a platform: {text[:200]!r}", next_action="Write os/architecture[/variant], for example linux/amd64 or linux/arm/v7.")
        return cls(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "").normalized()

    def normalized(self) -> Platform:
        """Aliases replaced and default variants dropped or filled in, as containerd's ``Normalize``."""
        os, arch, variant = self.os.lower(), self.architecture.lower(), self.variant.lower()
        os = "darwin" if os == "macos" else os
        if arch in _ARCHITECTURES:
            arch, implied = _ARCHITECTURES[arch]
            variant = implied or variant
        if arch == "386" or (arch == "amd64" and variant == "v1") or (arch == "arm64" and variant in ("8", "v8")):
            variant = ""
        elif arch == "arm":
            variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
        return self.model_copy(update={"os": os, "architecture": arch, "variant": variant})

    def accepted(self) -> list[Platform]:
        """What a machine of this platform runs, best first (containerd's ``platformVector``)."""
        base = self.normalized()
        found = [base]

        def add(architecture: str, *variants: str) -> None:
            found.extend(base.model_copy(update={"architecture": architecture, "variant": v}) for v in variants)

        number = int(base.variant[1:]) if re.fullmatch(r"v[0-9]", base.variant) else 0
        if base.architecture == "amd64":
            add("amd64", *(f"v{n}" if n > 1 else "" for n in range(number - 1, 0, -1)))
            add("386", "")
        elif base.architecture == "arm":
            add("arm", *(f"v{n}" for n in range(number - 1, 4, -1)))
        elif base.architecture == "arm64":
            if number > 8:
                add("arm64", *(f"v{n}" if n > 8 else "" for n in range(number - 1, 7, -1)))
            add("arm", "v8", "v7", "v6", "v5")
        return found

    def rank(self, offered: Platform) -> int | None:
        """How well ``offered`` suits a request for this platform: 0 is best, None not at all.

        A request without ``os.version`` takes any.
        """
        candidate = offered.normalized()
        for rank, wanted in enumerate(self.accepted()):
            if (wanted.os, wanted.architecture, wanted.variant) == (candidate.os, candidate.architecture, candidate.variant) and (
                not wanted.os_version or wanted.os_version == candidate.os_version
            ):
                return rank
        return None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
