"""The callback that labels at fit end: its contract, what it checks before training, and what it does."""
