"""Who gets a connection, decided without any I/O: the gate and its breaker."""
