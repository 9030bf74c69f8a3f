"""Seeds, and true single precision."""
