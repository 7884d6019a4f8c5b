"""Image quality: restoration, seams of windows, crosstalk of tiles, the 8-bit model."""
