"""Draw README.md and docs/ from the records. results/ draws docs/results.md."""
