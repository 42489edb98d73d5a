"""Container images as delta archives: only what is new travels. A Prefect task collection.

Importing this package imports neither Prefect nor the engine; each name is
loaded when it is first used (PEP 562).
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_diffah.engine.delta.report import ExportReport, ImportReport
    from prefect_diffah.engine.errors import DiffahError
    from prefect_diffah.flows.export_delta import export_delta
    from prefect_diffah.flows.import_delta import import_delta
    from prefect_diffah.flows.requests import AccessRequest, ExportRequest, ImportRequest
    from prefect_diffah.tasks.blocks import DeltaStore, RegistryCredentials

__all__ = [
    "AccessRequest",
    "DeltaStore",
    "DiffahError",
    "ExportReport",
    "ExportRequest",
    "ImportReport",
    "ImportRequest",
    "RegistryCredentials",
    "export_delta",
    "import_delta",
]

__version__ = _version("prefect-diffah")

_HOMES = {
    "AccessRequest": "flows.requests",
    "DeltaStore": "tasks.blocks",
    "DiffahError": "engine.errors",
    "ExportReport": "engine.delta.report",
    "ExportRequest": "flows.requests",
    "ImportReport": "engine.delta.report",
    "ImportRequest": "flows.requests",
    "RegistryCredentials": "tasks.blocks",
    "export_delta": "flows.export_delta",
    "import_delta": "flows.import_delta",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
