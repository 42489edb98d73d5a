"""Engine steps as Prefect tasks, the runner that calls them, and blocks."""
