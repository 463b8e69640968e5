"""Benchmarks: tasks times methods, and the claims about cartridges measured with them."""
