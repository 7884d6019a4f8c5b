"""The sampling loop on a CUDA GPU."""
