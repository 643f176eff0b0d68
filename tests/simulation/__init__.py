"""Random schedules against the pure gate; ``python -m tests.simulation`` runs as many as one likes."""
