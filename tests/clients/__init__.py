"""The real build tools as clients of a running node."""
