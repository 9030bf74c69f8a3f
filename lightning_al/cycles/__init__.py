"""All cycles of a run: the loop around fit and test, and what a cycle starts from."""
