"""Detectors of triggered images, and the client that queries the classifier for them."""
