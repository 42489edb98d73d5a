"""What a person runs: the export and import flows."""
