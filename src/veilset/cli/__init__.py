"""`veilset ...`: the pipeline's work for one folder of images, keys, audits, and help."""

import sys

import typer

from veilset.cli import (
    audit,
    bundle,
    drops,
    erase,
    images,
    keys,
    predict,
    project,
    release,
    remote,
    report,
)
from veilset.console import run_reporting_errors
from veilset.quiet import quiet

app = typer.Typer(
    name="veilset",
    help="Protect image data sets, measure what they leak, train on them, keep the evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
images.add_to(app)
predict.add_to(app)
release.add_to(app)
bundle.add_to(app)
project.add_to(app)
report.add_to(app)
erase.add_to(app)
app.add_typer(keys.app, name="key")
app.add_typer(audit.app, name="audit")
app.add_typer(drops.app, name="drop")
app.add_typer(remote.app, name="remote")


def main() -> None:
    """The entry point: a user's error is one sentence and exit code 1."""
    quiet()
    sys.exit(run_reporting_errors(app))
