"""The user's module as a function from a batch to outputs, and copies of it."""
