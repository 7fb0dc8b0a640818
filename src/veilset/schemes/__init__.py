"""Protection schemes, one a file, found by the registry."""
