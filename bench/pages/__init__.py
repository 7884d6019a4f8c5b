"""Draw the generated parts of README.md and docs/ from the records."""
