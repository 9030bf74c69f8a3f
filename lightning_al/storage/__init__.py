"""Every file that a run leaves: its schema, one writer, one reader."""
