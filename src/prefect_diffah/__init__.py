"""Container image deltas, as a Prefect task collection."""
