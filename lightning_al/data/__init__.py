"""Which samples are labeled, and the loaders over both parts."""
