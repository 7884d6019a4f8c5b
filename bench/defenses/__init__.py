"""ZIP and the baselines that it is compared with. registry.py makes them by name; base.py is their interface."""
