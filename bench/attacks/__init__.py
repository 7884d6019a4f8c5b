"""The triggers. registry.py makes them by name; base.py is their interface, poisoning.py plants them in a data set."""
