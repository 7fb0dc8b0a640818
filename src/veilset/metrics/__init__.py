"""Image similarity, retrieval and statistics."""
