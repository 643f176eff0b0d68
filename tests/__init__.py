"""The tests: folders mirror the package, others hold what crosses it; at the top are those of what every room uses."""
