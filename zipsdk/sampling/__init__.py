"""Implement the method in NumPy.

sampler.py                      the loop: Algorithms 1 and 2 of the paper
schedule.py                     the table of steps: time steps, weights, noise levels
guidance.py                     several transforms as one projection
noise.py, noise_keys.py         the counter-based noise, and the key of each image
tiling.py, denoiser.py          images of any size on the input sizes of the UNet
state.py, cpu_loop.py           uint8 images to the state of the loop and back; batches of images on the CPU
memory.py                       the check that an image fits into memory
"""
