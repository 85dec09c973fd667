"""Raw requests that try to get past the HTTP gate, and what may come of each."""
