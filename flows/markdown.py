"""Reports as Markdown, for artifacts."""

from prefect_diffah.engine.delta.report import DeltaSummary, ExportReport, ImportReport, human

__all__ = ["export_markdown", "import_markdown"]


def export_markdown(report: ExportReport) -> str:
    """An export's artifact."""
    head = [("Output", f"`{report.output}`"), ("Status", report.status), ("Archive", human(report.size) if report.size is not None else "–")]
    return _page(f"Delta of {report.summary.image}", head, report.summary, report.notes)


def import_markdown(report: ImportReport) -> str:
    """An import's artifact."""
    head = [
        ("Output", f"`{report.output}`"),
        ("Status", report.status),
        ("Manifest digest", f"`{report.digest}`" if report.digest else "not preserved"),
        ("Rebuilt", f"{report.rebuilt} blobs, {human(report.rebuilt_bytes)}"),
        ("Held by the output's place", f"{report.held} blobs"),
    ]
    return _page(f"Import of {report.summary.image}", head, report.summary, report.notes)


def _page(title: str, head: list[tuple[str, str]], summary: DeltaSummary, notes: tuple[str, ...]) -> str:
    facts = [
        *head,
        ("Platform", summary.platform or "–"),
        ("Target", f"`{summary.target}`"),
        *(("Baseline", f"`{digest}`") for digest in summary.baselines),
        ("Shipped", f"{summary.shipped} blobs, {human(summary.shipped_bytes)}"),
        ("Required", f"{summary.required} blobs, {human(summary.required_bytes)}"),
        ("Saved", f"{summary.saved_percent} %"),
    ]
    lines = [f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), ""]
    lines += ["| blob | role | travels | size | payload | why |", "|---|---|---|---:|---:|---|"]
    lines += [f"| `{row.digest.short}` | {row.role} | {row.travels} | {human(row.size)} | {human(row.payload)} | {row.reason or ''} |" for row in summary.blobs]
    return "\n".join([*lines, *(f"\n> {note}" for note in notes)])
