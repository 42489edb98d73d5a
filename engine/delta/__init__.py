"""Deltas: what travels, the archive it travels in, and how images are rebuilt from it. The format is specified in FORMAT.md."""
