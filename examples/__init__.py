"""Runnable scripts, and the data and models of the configurations."""
