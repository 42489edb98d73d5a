"""The pipeline's runner that runs steps as Prefect tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_diffah.engine.progress import cancellable
from prefect_diffah.engine.store import Store, record_of
from prefect_diffah.tasks.steps import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefect import Task

__all__ = ["THREADS", "Tasks"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

THREADS: Any = ThreadPoolTaskRunner(max_workers=8)
"""The flows' task runner unless told otherwise: Prefect's own default has no bound."""


class Tasks:
    """Runs steps as task runs of the current flow run, mapped ones on its task runner.

    A cached result is used only while its record in the store is valid: one
    that names a blob which has been deleted since is made anew.
    """

    def call(self, step: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        task: Callable[P, R] = TASKS[step]
        return task(*args, **kwargs)

    def map(self, step: Callable[Concatenate[T, P], R], items: Iterable[T], /, *args: P.args, **kwargs: P.kwargs) -> list[R]:
        task = TASKS[step]
        with cancellable():
            futures = [_fresh(task, step, item, args).submit(item, *args, **kwargs) for item in items]
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]


def _fresh(task: Task[..., Any], step: Callable[..., Any], item: object, args: tuple[Any, ...]) -> Task[..., Any]:
    key = record_of(step, item)
    store = args[0] if args else None
    if key is None or not isinstance(store, Store) or store.get_record(key) is not None:
        return task
    return task.with_options(refresh_cache=True)
