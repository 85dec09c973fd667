"""What a person runs beside the daemon: one module a command."""
