"""What breaks below the pool: servers, networks, roles, PgBouncer; and the soak, which breaks all of it at random."""
