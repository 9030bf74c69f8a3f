"""Every formula as a pure tensor function."""
