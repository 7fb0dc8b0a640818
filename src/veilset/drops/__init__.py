"""New data: how drops arrive, what is decided about them, and how parts of them are erased."""
