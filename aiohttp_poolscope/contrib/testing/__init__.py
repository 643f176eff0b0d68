"""What the fixtures of ``pytest_plugin`` give to a test; each part is imported when a test asks for it."""
