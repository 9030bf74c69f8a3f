"""What noise stability costs, measured."""
