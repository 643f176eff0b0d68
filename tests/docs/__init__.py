"""The documents are true: their tables, links, code, commands and output."""
