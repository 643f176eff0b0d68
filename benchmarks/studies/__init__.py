"""The questions that ``python -m benchmarks`` asks: of each its cases, its candidates and its goals."""
