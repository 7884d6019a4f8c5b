"""Provide helpers that are independent of images and models.

atomic.py, locks.py     files and folders that are written completely or not at all; locks between processes
forks.py, prefetch.py   objects that survive a fork; a thread that reads ahead
cpus.py, cgroups.py     the CPUs and control groups of this process
runtimes.py             imports of optional packages, and advice on broken ones
validation.py           types of options
"""
