"""The tables: setup, evaluation, caches, records, published numbers, and the search of the guard's default."""
