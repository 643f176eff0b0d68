"""One link to a server: opened, asked, cancelled, closed; and what the libraries below do wrong."""
