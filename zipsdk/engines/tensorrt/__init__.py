"""TensorRT and TensorRT-RTX: build plans and run them."""
