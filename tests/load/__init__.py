"""Crowds that abort, flood and cheat."""
