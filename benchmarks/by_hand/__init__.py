"""Programs that are run by hand, each for a figure that the documentation tells; ``python -m benchmarks`` runs none."""
