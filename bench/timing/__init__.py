"""The rows of bench/speed.py: ZIP, the guard, loops in torch, published peers; breakdown.py and cpu.py."""
