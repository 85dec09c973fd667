"""Each module touches exactly one thing outside of the process, and no other adapter."""
