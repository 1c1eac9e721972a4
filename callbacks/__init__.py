"""One behavior of a run per file."""
