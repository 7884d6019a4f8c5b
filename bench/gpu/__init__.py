"""Benchmarks that need a GPU; kernels.py runs on the CPU, too."""
