"""What a statement's text says: pure, and without a parser of PostgreSQL's."""
