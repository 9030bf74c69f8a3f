"""One pass over the pool on all processes."""
