"""One behaviour of a run per file."""
