"""Side-by-side measurements: `python -m benchmarks.NAME [--quick]`; none of them is a test."""
