"""Every example runs as it is written and does what it says."""
