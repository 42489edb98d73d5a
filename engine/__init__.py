"""Images, registries, deltas, and the pipeline that makes one of the other. Knows neither Prefect nor logging set-up."""
