"""The export flow."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from prefect_diffah.engine import pipeline
from prefect_diffah.engine.delta.report import ExportReport
from prefect_diffah.flows.markdown import export_markdown
from prefect_diffah.flows.requests import ExportRequest
from prefect_diffah.tasks.blocks import load_block
from prefect_diffah.tasks.runner import THREADS, Tasks

__all__ = ["export_delta"]


@flow(name="export-delta", flow_run_name="export {request.target}", task_runner=THREADS)
def export_delta(request: ExportRequest) -> ExportReport:
    """Make a delta archive: what the target image has and the baselines have not.

    Args:
        request: What to deliver, what the receiver has, and where the delta goes.
    """
    report = pipeline.export_delta(request.resolve(load_block), Tasks(request.workers))
    create_markdown_artifact(export_markdown(report), key="diffah-export", description=f"Delta of {report.summary.image}")
    return report
