"""One thin module a DVC stage: settings in, files out."""
