"""The integrations, each with the real thing it integrates with."""
