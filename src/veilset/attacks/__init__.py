"""Attacks on protected images, one a file, found by the registry."""
