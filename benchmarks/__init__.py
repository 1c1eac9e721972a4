"""Benchmarks: each runs by itself (``python -m benchmarks.NAME``) and saves results under the machine's name."""
