"""The report that a reviewer reads."""
