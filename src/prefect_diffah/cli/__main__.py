"""``python -m prefect_diffah.cli``."""

from prefect_diffah.cli.app import main

main()
