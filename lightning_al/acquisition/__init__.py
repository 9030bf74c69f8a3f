"""The callback that labels at fit end: its interface, the checks before training, and the query."""
