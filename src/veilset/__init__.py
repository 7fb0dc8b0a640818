"""Veilset: protect image data sets, measure what they leak, train on them, keep the evidence."""

__version__ = "0.1.0"
