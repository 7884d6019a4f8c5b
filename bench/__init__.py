"""Benchmarks of zipsdk: speed, defense tables, and what the pages show."""

import zipsdk._util.runtimes  # noqa: F401  # turns ONNX Runtime's telemetry off before a module here imports it
