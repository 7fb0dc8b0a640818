"""What decides about, and goes into, a release."""
