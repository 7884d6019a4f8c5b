"""The method: schedule, sampler, noise and tiling, in NumPy."""
