"""What it costs: each runs by itself (``python -m benchmarks.NAME``), results beside them with the machine's name."""
