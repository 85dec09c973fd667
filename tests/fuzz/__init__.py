"""The fuzz target of the HTTP gate, and what it needs."""
