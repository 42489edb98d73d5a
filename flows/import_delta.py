"""The import flow."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from prefect_diffah.engine import pipeline
from prefect_diffah.engine.delta.report import ImportReport
from prefect_diffah.flows.markdown import import_markdown
from prefect_diffah.flows.requests import ImportRequest
from prefect_diffah.tasks.blocks import load_block
from prefect_diffah.tasks.runner import THREADS, Tasks

__all__ = ["import_delta"]


@flow(name="import-delta", flow_run_name="import {request.delta}", task_runner=THREADS)
def import_delta(request: ImportRequest) -> ImportReport:
    """Rebuild an image from a delta archive and what is here already.

    Args:
        request: The delta, the images that are here, and where the rebuilt image goes.
    """
    report = pipeline.import_delta(request.resolve(load_block), Tasks(request.workers))
    create_markdown_artifact(import_markdown(report), key="diffah-import", description=f"Import of {report.summary.image}")
    return report
