"""The two compositions, export and import, over plain steps.

How a step is run is the runner's business: here in this process, or as Prefect
tasks, or anywhere else. Values that pass through a runner are frozen, small
and picklable; blobs pass through the store.
"""

from __future__ import annotations

import contextlib
import contextvars
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from prefect_diffah.engine.delta.apply import ImportPlan, check_output, plan_import, publish, read_delta, reconstruct, verify_baseline
from prefect_diffah.engine.delta.archive import open_delta
from prefect_diffah.engine.delta.pack import check_delta_output, pack_blobs, write_archive
from prefect_diffah.engine.delta.plan import compute_diff
from prefect_diffah.engine.delta.report import DeltaSummary, ExportReport, ImportReport, VerifyReport
from prefect_diffah.engine.images import ImageName, Place, fetch_manifest, read_manifest_file
from prefect_diffah.engine.oci import Platform
from prefect_diffah.engine.progress import cancellable
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.store import Store
from prefect_diffah.engine.transports import WriteOptions, Written

__all__ = ["Direct", "ExportJob", "ImportJob", "Runner", "export_delta", "import_delta", "inspect_delta", "verify_delta"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
REPACKED = "not in the form that export writes, but a copy by another tool: digests were checked; order and padding were not"


class Runner(Protocol):
    """How steps are run."""

    def call(self, step: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run ``step`` and return its result."""

    def map(self, step: Callable[Concatenate[T, P], R], items: Iterable[T], /, *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Run ``step`` for each item, at once where possible; results in order, or the first failure raised."""


class Direct:
    """Steps run in this process, mapped ones in ``workers`` threads."""

    def __init__(self, workers: int = 4) -> None:
        self.workers = workers

    def call(self, step: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return step(*args, **kwargs)

    def map(self, step: Callable[Concatenate[T, P], R], items: Iterable[T], /, *args: P.args, **kwargs: P.kwargs) -> list[R]:
        pool, interrupted = ThreadPoolExecutor(self.workers, thread_name_prefix="step"), False
        try:
            with cancellable():
                futures = [pool.submit(contextvars.copy_context().run, partial(step, item, *args, **kwargs)) for item in items]
                for future in as_completed(futures):
                    future.result()
            return [future.result() for future in futures]
        except BaseException as error:
            # whoever presses Ctrl-C does not wait for a registry's answer
            interrupted = not isinstance(error, Exception)
            raise
        finally:
            pool.shutdown(wait=not interrupted, cancel_futures=True)


@dataclass(frozen=True)
class ExportJob:
    """Everything an export needs, resolved: places carry their credentials."""

    target: Place
    baselines: tuple[Place, ...]
    output: Place
    store: Store
    baseline_manifests: tuple[FileLocation, ...] = ()
    platform: Platform | None = None
    name: ImageName | None = None
    dry_run: bool = False
    options: WriteOptions = field(default_factory=WriteOptions)


@dataclass(frozen=True)
class ImportJob:
    """Everything an import needs, resolved: places carry their credentials."""

    delta: Place
    baselines: tuple[Place, ...]
    output: Place
    store: Store
    name: ImageName | None = None
    dry_run: bool = False
    options: WriteOptions = field(default_factory=WriteOptions)


def export_delta(job: ExportJob, run: Runner) -> ExportReport:
    """Write what the target has and the baselines have not.

    A dry run reads manifests and configs only and keeps nothing; its figures
    are upper bounds.
    """
    dry_run = job.dry_run or _nowhere(job.output)
    with _scratch(job.target.workdir) if dry_run else contextlib.nullcontext(job.store) as store:
        target = run.call(fetch_manifest, job.target, store, job.platform)
        chosen = job.platform or target.platform
        baselines = run.map(fetch_manifest, job.baselines, store, chosen, match=job.platform is not None)
        baselines += run.map(read_manifest_file, job.baseline_manifests)
        plan = run.call(compute_diff, [target], baselines, job.name)
        run.call(check_delta_output, plan, job.output, force=job.options.force)
        notes = tuple(note for tree in (target, *baselines) for note in tree.notes)
        if dry_run:
            return ExportReport(output=_shown(job.output), status="dry-run", summary=DeltaSummary.expected(plan), notes=notes)
        packed = run.map(pack_blobs, plan.travelling, store, job.target)
        delta = run.call(write_archive, plan, packed, job.output, store, job.options)
    return ExportReport(
        output=delta.written.location,
        status=delta.written.status,
        size=delta.written.size,
        delta=delta.artifact,
        summary=DeltaSummary.of(delta.sidecar),
        notes=notes + delta.written.notes,
    )


def import_delta(job: ImportJob, run: Runner) -> ImportReport:
    """Rebuild the target from a delta and what the baselines hold.

    A delta on this machine is read and compared whole before anything is done;
    one elsewhere is verified as it is used, so that it travels once. A dry run
    reads the whole delta, looks for every required blob, and keeps nothing.
    """
    baselines = list(job.baselines)
    dry_run = job.dry_run or _nowhere(job.output)
    thorough = dry_run or (job.delta.reference.transport != "docker" and FileLocation(job.delta.reference.where, job.delta.access).local is not None)
    with _scratch(job.delta.workdir) if dry_run else contextlib.nullcontext(job.store) as store:
        delta = run.call(read_delta, job.delta, store, thorough=thorough)
        summary = DeltaSummary.of(delta.sidecar)
        unwritten = Written(location=_shown(job.output), status="unchanged", root=summary.target, bytes_written=0)
        if run.call(check_output, delta, job.output, store, job.name, force=job.options.force):
            return _report(unwritten, summary, ImportPlan(rebuild=()))
        found = run.call(verify_baseline, delta, baselines)
        plan = run.call(plan_import, delta, found, baselines, job.output, store, job.name, dry_run=dry_run)
        if dry_run:
            return _report(unwritten, summary, plan).model_copy(update={"status": "dry-run"})
        run.map(reconstruct, plan.rebuild, store, job.delta, baselines)
        written = run.call(publish, delta, baselines, job.output, store, job.name, job.options)
    return _report(written[0], summary, plan)


def verify_delta(delta: Place, baselines: list[Place]) -> VerifyReport:
    """Check a whole delta, byte by byte, and that the baselines have what it requires.

    Raises:
        InvalidArchive, DigestMismatch, …: it is damaged.
        BaselineIncomplete: baselines were given, and lack blobs.
    """
    with _scratch(delta.workdir) as store:
        read = read_delta(delta, store, thorough=True)
    if baselines:
        verify_baseline(read, baselines)
    return VerifyReport(
        archive=_shown(delta),
        canonical=read.canonical,
        baseline_checked=bool(baselines),
        summary=DeltaSummary.of(read.sidecar),
        notes=() if read.canonical else (REPACKED,),
    )


def inspect_delta(delta: Place) -> DeltaSummary:
    """What a delta says of itself; its blobs are not read."""
    with open_delta(delta) as opened:
        return DeltaSummary.of(opened.sidecar)


def _report(written: Written, summary: DeltaSummary, plan: ImportPlan) -> ImportReport:
    return ImportReport(
        output=written.location,
        status=written.status,
        digest=written.root,
        rebuilt=len(plan.rebuild),
        rebuilt_bytes=sum(item.blob.size for item in plan.rebuild),
        held=len(plan.held),
        bytes_written=written.bytes_written,
        summary=summary,
        notes=written.notes,
    )


@contextlib.contextmanager
def _scratch(workdir: str | None) -> Iterator[Store]:
    """A store that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="prefect-diffah-", dir=workdir) as folder:
        yield Store(folder)


def _nowhere(output: Place) -> bool:
    return output.reference.transport != "docker" and FileLocation(output.reference.where, output.access).is_null


def _shown(place: Place) -> str:
    return place.reference.where if place.reference.transport == "oci-archive" and not place.reference.tag else str(place)
