"""Draw pages of results: page.py is the command."""
