"""Draw docs/results.md: page.py is the command."""
