"""The cycles of a run: the loop over fit and test, and the weights that each cycle starts from."""
