"""Shared by all benchmarks: records, Markdown, metrics, timing, checkpoints, and migrate.py for older records."""
