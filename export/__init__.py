"""Export checkpoints to ONNX models and TensorRT plans, train models, and quantize them."""

import zipsdk._util.runtimes  # noqa: F401  # turns ONNX Runtime's telemetry off before a module here imports it
