"""What a borrower does with a connection: statements, transactions, streams, notifications."""
