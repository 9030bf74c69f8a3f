"""Scripts that kill, starve and disturb runs, and compare what is left with a run that nothing happened to."""
