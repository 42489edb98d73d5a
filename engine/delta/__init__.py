"""Deltas: planned, packed into an archive, read again and applied. The archive is specified in FORMAT.md."""
