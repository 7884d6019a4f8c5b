"""Purify folders of images; an interrupted run resumes.

discovery.py, globs.py   find the images of files, folders and patterns, and name their outputs
runner.py                read, purify and write them, batch by batch
manifest.py              record what is done
"""
