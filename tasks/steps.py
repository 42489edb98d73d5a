"""The engine's steps as Prefect tasks: a run name, a cache policy, and two retries of what can be mended by trying again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE, CachePolicy

from prefect_diffah.engine.delta import apply, pack, plan
from prefect_diffah.engine.errors import is_transient
from prefect_diffah.engine.images import fetch_manifest as _fetch_manifest
from prefect_diffah.engine.images import read_manifest_file as _read_manifest_file
from prefect_diffah.engine.oci import Digest
from prefect_diffah.engine.store import Store, record_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.context import TaskRunContext

__all__ = [
    "TASKS",
    "ByRecord",
    "check_delta_output",
    "check_output",
    "compute_diff",
    "fetch_manifest",
    "pack_blobs",
    "plan_import",
    "publish",
    "read_delta",
    "read_manifest_file",
    "reconstruct",
    "transient",
    "verify_baseline",
    "write_archive",
]

P = ParamSpec("P")
R = TypeVar("R")


def transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's ``retry_condition_fn``: retry only what the engine calls transient."""
    try:
        state.result()
    except Exception as error:
        return is_transient(error)
    return False


class ByRecord(CachePolicy):
    """A step's cache key is the key of its record, and the store that the record is in.

    The record stays the truth: the runner has a task refresh its cached result
    when the store has no valid record under that key.
    """

    def compute_key(self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any) -> str | None:
        values = list(inputs.values())
        store = inputs.get("store")
        key = record_of(task_ctx.task.fn, values[0]) if values and isinstance(store, Store) else None
        return None if key is None or store is None else f"{key.replace('/', '-')}-{Digest.of(store.url.encode()).short}"


def _task(step: Callable[P, R], name: str, cache_policy: CachePolicy = NO_CACHE) -> Task[P, R]:
    recorded = cache_policy is not NO_CACHE
    make: Callable[[Callable[P, R]], Task[P, R]] = task(
        name=step.__name__.replace("_", "-"),
        task_run_name=name,
        retries=2,
        retry_delay_seconds=[2, 10],
        retry_jitter_factor=0.5,
        retry_condition_fn=transient,
        cache_policy=cache_policy,
        persist_result=recorded,
        result_serializer="json" if recorded else None,
    )
    return make(step)


BY_RECORD = ByRecord()

fetch_manifest = _task(_fetch_manifest, "fetch manifest {place.reference}")
read_manifest_file = _task(_read_manifest_file, "read manifest {location}")
compute_diff = _task(plan.compute_diff, "compute diff")
check_delta_output = _task(pack.check_delta_output, "check output {output.reference}")
pack_blobs = _task(pack.pack_blobs, "pack {blob.role} {blob.descriptor.digest.short}", BY_RECORD)
write_archive = _task(pack.write_archive, "write archive {output.reference}")
read_delta = _task(apply.read_delta, "read delta {place.reference}")
check_output = _task(apply.check_output, "check output {output.reference}")
verify_baseline = _task(apply.verify_baseline, "verify baseline")
plan_import = _task(apply.plan_import, "plan import")
reconstruct = _task(apply.reconstruct, "reconstruct {item.blob.role} {item.blob.digest.short}", BY_RECORD)
publish = _task(apply.publish, "publish {output.reference}")

TASKS: dict[Callable[..., Any], Task[..., Any]] = {
    each.fn: each
    for each in (
        fetch_manifest,
        read_manifest_file,
        compute_diff,
        check_delta_output,
        pack_blobs,
        write_archive,
        read_delta,
        check_output,
        verify_baseline,
        plan_import,
        reconstruct,
        publish,
    )
}
"""The task of each step that the pipelines call."""
