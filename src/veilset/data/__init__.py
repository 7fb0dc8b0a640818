"""Image sets: sources, safe decoding, shards and manifest, roles."""
