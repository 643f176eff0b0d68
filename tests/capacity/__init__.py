"""How many connections are needed, and how many the server has."""
