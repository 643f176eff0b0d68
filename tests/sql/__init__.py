"""What the text of a statement tells."""
