"""Servers as processes: signals, rolling restarts, kills."""
