"""What a delta holds, for people and for ``--json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prefect_diffah.engine.delta.sidecar import VERSION, Sidecar, SidecarBlob
from prefect_diffah.engine.model import ByteCount, Model
from prefect_diffah.engine.oci import Digest

if TYPE_CHECKING:
    from prefect_diffah.engine.delta.plan import DeltaPlan

__all__ = ["BlobRow", "DeltaSummary", "ExportReport", "ImportReport", "VerifyReport", "human"]


class BlobRow(Model):
    """One blob of the target; manifests are not listed. Sizes in bytes."""

    digest: Digest
    role: str
    size: ByteCount
    travels: str
    payload: ByteCount
    """Bytes that travel for it."""
    reason: str | None = None


class DeltaSummary(Model):
    """The figures of a delta. Layers and configs count as blobs, manifests do not."""

    version: str
    image: str
    platform: str | None = None
    target: Digest
    baselines: tuple[Digest, ...]
    shipped: int
    shipped_bytes: ByteCount
    required: int
    required_bytes: ByteCount
    saved_percent: float
    blobs: tuple[BlobRow, ...]

    @classmethod
    def of(cls, sidecar: Sidecar) -> DeltaSummary:
        """The summary of a delta as it is."""
        sizes = {payload.digest: payload.size for payload in sidecar.payloads}
        rows = [_row(blob, sum(sizes[digest] for digest in blob.payloads)) for blob in sidecar.blobs if blob.role != "manifest"]
        used = {digest for blob in sidecar.blobs if blob.role != "manifest" for digest in blob.payloads}
        image = sidecar.images[0]
        return _summary(
            str(image.image_name),
            str(sidecar.platform) if sidecar.platform else None,
            image.target.digest,
            tuple(baseline.manifest.digest for baseline in image.baselines),
            rows,
            sum(sizes[digest] for digest in used),
        )

    @classmethod
    def expected(cls, plan: DeltaPlan) -> DeltaSummary:
        """What a planned delta will be at most."""
        image = plan.images[0]
        rows = [
            BlobRow(
                digest=blob.descriptor.digest,
                role=blob.role,
                size=blob.descriptor.size,
                travels="carried" if blob.travels else "required",
                payload=blob.descriptor.size if blob.travels else 0,
                reason=blob.reason,
            )
            for blob in plan.blobs
            if blob.role != "manifest"
        ]
        return _summary(
            str(image.tree.name),
            str(image.tree.platform) if image.tree.platform else None,
            image.tree.root.digest,
            tuple(baseline.manifest.digest for baseline in image.baselines),
            rows,
            sum(row.payload for row in rows),
        )

    def lines(self) -> list[str]:
        """The summary as text, one row a blob at the end."""
        head = [f"version: {self.version}", f"image: {self.image}"]
        if self.platform:
            head.append(f"platform: {self.platform}")
        head.append(f"target manifest digest: {self.target}")
        head += [f"baseline manifest digest: {digest}" for digest in self.baselines]
        head += [
            f"shipped: {self.shipped} blobs ({self.shipped_bytes} bytes)",
            f"required: {self.required} blobs ({self.required_bytes} bytes)",
            f"saved {self.saved_percent}% vs full image",
            "",
        ]
        return head + [f"{row.travels:<8}  {row.role:<6}  {row.digest}  {row.size:>12}  {row.payload:>12}" for row in self.blobs]


class ExportReport(Model):
    """What an export made."""

    output: str
    status: Literal["written", "unchanged", "dry-run"]
    size: ByteCount | None = None
    """Bytes of the archive, where it is one file."""
    delta: Digest | None = None
    """Digest of the delta's artifact manifest."""
    summary: DeltaSummary
    notes: tuple[str, ...] = ()


class ImportReport(Model):
    """What an import made."""

    output: str
    status: Literal["written", "unchanged", "dry-run"]
    digest: Digest | None = None
    """The manifest digest that the image has there; None where it cannot survive."""
    rebuilt: int
    """Blobs made from delta and baselines."""
    rebuilt_bytes: ByteCount
    held: int
    """Blobs that the output's place had."""
    bytes_written: ByteCount
    summary: DeltaSummary
    notes: tuple[str, ...] = ()


class VerifyReport(Model):
    """What was checked of a delta."""

    archive: str
    canonical: bool
    """Whether every byte was compared with what the sidecar says; else digests alone."""
    baseline_checked: bool
    summary: DeltaSummary
    notes: tuple[str, ...] = ()


def _summary(image: str, platform: str | None, target: Digest, baselines: tuple[Digest, ...], rows: list[BlobRow], payload: int) -> DeltaSummary:
    required = [row for row in rows if row.travels == "required"]
    total = sum(row.size for row in rows)
    return DeltaSummary(
        version=VERSION,
        image=image,
        platform=platform,
        target=target,
        baselines=baselines,
        shipped=len(rows) - len(required),
        shipped_bytes=payload,
        required=len(required),
        required_bytes=sum(row.size for row in required),
        saved_percent=round(100 * (1 - payload / total), 1) if total else 0.0,
        blobs=tuple(rows),
    )


def _row(blob: SidecarBlob, payload: int) -> BlobRow:
    return BlobRow(digest=blob.digest, role=blob.role, size=blob.size, travels=blob.travels, payload=payload, reason=blob.reason)


def human(count: int) -> str:
    """A number of bytes for people: ``1.4 MiB``."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
