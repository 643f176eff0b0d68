"""Integrations: each imports the core, never the reverse, and each is imported only by whoever wants it."""
