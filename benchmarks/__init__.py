"""Side-by-side measurements; each prints a ratio and writes one JSON to `benchmarks/results/`."""
