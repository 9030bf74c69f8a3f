"""Numbers about finished runs: learning curves, paired tests, comparisons."""
