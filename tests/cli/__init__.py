"""The command line, as programs in terminals."""
