"""What the two processes of `test_ranks.py` run: `several.py FOLDER CASE`."""

import csv
import os
import sys
from pathlib import Path

from small_sets import params, stripes, subject

from veilset.console import run_reporting_errors, say
from veilset.training import feed, loop
from veilset.training.loader import Samples, needed, read_samples
from veilset.training.loop import Epoch, TrainResult, train
from veilset.training.saved import HISTORY


def trained(folder: Path, parts: tuple[Samples, Samples] | None = None) -> TrainResult:
    """Two epochs, with batches and a set that two processes cannot share evenly."""
    settings = params(epochs=2, batch_size=15, precision="fp32", flip=True, ema=0.5)
    network = subject(model="resnet20")
    return train(
        *(parts or (stripes(67), stripes(13, seed=1))), settings, network, folder,
        lambda epoch, _: say(f"epoch {epoch.epoch}"),
    )  # fmt: skip


def stored(folder: Path, *, disk: bool) -> tuple[Samples, Samples]:
    """Training and validation images of two drops, read from disk batch by batch or whole."""
    drops = [folder / "first", folder / "second"]
    one, two = (
        read_samples(drops, split, masks=False, room=needed(drops, split, masks=False) - disk)[1]
        for split in ("train", "validation")
    )
    assert one.on_disk == two.on_disk == disk
    return one, two


def read_history(folder: Path) -> list[Epoch]:
    """The epochs in a model's folder."""
    with (folder / HISTORY).open() as file:
        return [Epoch(**{k: float(v) for k, v in row.items()}) for row in csv.DictReader(file)]


def fail_in_epoch_2() -> None:
    """This process ends without a word in its second epoch."""
    step = loop._step

    def failing(run: loop.Run, *rest: object) -> object:
        if run.history:
            os._exit(3)
        return step(run, *rest)

    loop._step = failing


def main(folder: Path, case: str) -> None:
    """Trains; in the case `dies` the second process fails, `disk` and `memory` say from where."""
    if case == "dies" and os.environ["RANK"] == "1":
        fail_in_epoch_2()
    # In reads of so few bytes that an epoch takes many.
    feed.READ_BYTES = 12 * 8 * 9 * 3
    told = case in ("disk", "memory")
    trained(folder, stored(folder.parent, disk=case == "disk") if told else None)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(lambda: main(Path(sys.argv[1]), sys.argv[2])))
