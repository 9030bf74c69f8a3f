"""The files of a run folder, each with its schema, one writer and one reader."""
