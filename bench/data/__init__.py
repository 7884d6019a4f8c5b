"""Data sets from folders and archives."""
