"""The tests: they mirror the code; `fakes` and `helpers` are shared."""
