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
    from prefect.futures import PrefectFuture

__all__ = ["THREADS", "Tasks"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

THREADS: Any = ThreadPoolTaskRunner(max_workers=64)
"""The flows' task runner unless told otherwise. How many steps are under way is the request's to say."""


class Tasks:
    """Runs steps as task runs of the current flow run, mapped ones on its task runner.

    A cached result is used only while its record in the store is valid: one
    that names a blob which has been deleted since is made anew.

    Args:
        workers: mapped steps that are under way at a time.
    """

    def __init__(self, workers: int = 4) -> None:
        self.workers = workers

    def call(self, step: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        task: Callable[P, R] = TASKS[step]
        return task(*args, **kwargs)

    def map(self, step: Callable[Concatenate[T, P], R], items: Iterable[T], /, *args: P.args, **kwargs: P.kwargs) -> list[R]:
        task = TASKS[step]
        waiting = list(enumerate(items))[::-1]
        running: dict[PrefectFuture[R], int] = {}
        results: dict[int, R] = {}
        with cancellable():
            while waiting or running:
                while waiting and len(running) < self.workers:
                    place, item = waiting.pop()
                    running[_fresh(task, step, item, args).submit(item, *args, **kwargs)] = place
                future = next(as_completed(list(running)))
                results[running.pop(future)] = future.result()
        return [results[place] for place in sorted(results)]


def _fresh(task: Task[..., Any], step: Callable[..., Any], item: object, args: tuple[Any, ...]) -> Task[..., Any]:
    key = record_of(step, item)
    store = args[0] if args else None
    if key is None or not isinstance(store, Store) or store.get_record(key) is not None:
        return task
    return task.with_options(refresh_cache=True)
