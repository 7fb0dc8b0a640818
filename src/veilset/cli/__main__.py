"""`python -m veilset.cli`: the same as `veilset`."""

from veilset.cli import main

main()
