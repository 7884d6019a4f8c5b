"""From a checkpoint to an ONNX model and a TensorRT plan."""

import zipsdk._util.runtimes  # noqa: F401  # turns ONNX Runtime's telemetry off before a module here imports it
