"""What a GPU would run, read from the compiler's own output on a machine that has none (benchmarks/README.md)."""
