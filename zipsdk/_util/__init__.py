"""Provide helpers that are independent of images and models."""
