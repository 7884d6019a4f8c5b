"""The classifiers to protect: those trained here, and a user's own (user.py)."""
