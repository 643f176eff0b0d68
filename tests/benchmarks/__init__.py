"""The benchmarks' own arithmetic, and that all candidates do the same work."""
