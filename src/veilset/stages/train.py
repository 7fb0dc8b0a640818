"""Stage `train`: a CNN on what a scheme released.

`torchrun --nproc-per-node N -m veilset.stages train SCHEME MODEL SEED` trains it by N processes.
"""

import os
from contextlib import ExitStack
from pathlib import Path

from veilset.adapters.mlflow_live import Live, live_run
from veilset.console import Advance, progress, say
from veilset.data.manifest import Manifest
from veilset.errors import SettingsError
from veilset.models.registry import architecture as architecture_of
from veilset.settings import PARAMS_FILE, Settings, load_drops, load_settings
from veilset.stages.project import Project, existing, scheme_of
from veilset.training.beat import Beat
from veilset.training.loader import needed, read_samples
from veilset.training.loop import Epoch, Subject, train
from veilset.training.memory import room_for_images
from veilset.training.params import TrainingParams
from veilset.training.saved import ModelCard


def run(root: Path, scheme_name: str, model_name: str, seed: str) -> None:
    """Writes `data/models/<scheme>-<model>-<seed>/`."""
    project, settings = Project(root), load_settings(root)
    params = parameters(settings, int(seed))
    architecture, model_params = settings.model_block(model_name)
    folders = existing([project.protected(scheme_name, drop) for drop in load_drops(root).names])
    manifests = [Manifest.load(folder) for folder in folders]
    subject = Subject(
        model=architecture,
        classes=manifests[0].classes,
        scheme=scheme_name,
        declares=scheme_of(settings, scheme_name).declares,
        model_params=model_params,
        trained_on=tuple(manifest.root for manifest in manifests),
    )
    masks = architecture_of(architecture).reads_mask
    leads, beside = os.environ.get("RANK", "0") == "0", os.environ.get("LOCAL_WORLD_SIZE", "1")
    room = room_for_images(settings.resources.memory_mib, int(beside))
    # The smaller part first: it is read in every epoch as well.
    _, held_set = read_samples(folders, "validation", masks=masks, room=room)
    taken = 0 if held_set.on_disk else needed(folders, "validation", masks=masks)
    _, train_set = read_samples(folders, "train", masks=masks, room=room - taken)
    count = len(train_set.images)
    if leads and train_set.on_disk:
        say(
            f"train {scheme_name} {model_name} {seed}: {count:,} images do not fit the "
            f"{room >> 20:,} MiB of memory that they may take, so they are read from disk."
        )
    stage = f"train@{scheme_name}-{model_name}-{seed}"
    with ExitStack() as stack:
        advance = stack.enter_context(
            progress(
                f"train {scheme_name} {model_name} {seed}", params.epochs * count, hidden=not leads
            )
        )
        after = settings.resources.live_after if leads else 0.0
        shown = _Shown(advance, stack.enter_context(live_run(root, stage, after=after)), count)
        made = train(
            train_set, held_set, params, subject,
            project.model(scheme_name, model_name, params.seed), shown.epoch, shown.beat,
        )  # fmt: skip
        shown.live.finish(made.card.weights_sha256)
    if leads:
        say(words(made.card))


class _Shown:
    """Shows how far a training is: as a bar, and in MLflow where it takes long."""

    def __init__(self, advance: Advance, live: Live, count: int) -> None:
        """Begins at nothing; `count` is the images of an epoch."""
        self.advance, self.live, self.count, self.done = advance, live, count, 0

    def beat(self, beat: Beat) -> None:
        """During an epoch."""
        self._to((beat.epoch - 1) * self.count + beat.done, loss=beat.loss, accuracy=beat.accuracy)
        self.live.log(
            self.done, loss=beat.loss, accuracy=beat.accuracy, images_per_second=beat.rate,
            seconds_left=beat.seconds_left,
        )  # fmt: skip

    def epoch(self, epoch: Epoch, epochs: int) -> None:
        """After an epoch."""
        del epochs
        self._to(
            epoch.epoch * self.count, loss=epoch.train_loss, validation=epoch.validation_accuracy
        )
        self.live.log(
            self.done, learning_rate=epoch.lr, validation_loss=epoch.validation_loss,
            validation_accuracy=epoch.validation_accuracy,
        )  # fmt: skip

    def _to(self, done: int, **figures: float) -> None:
        self.advance(done - self.done, **figures)
        self.done = done


def words(card: ModelCard) -> str:
    """What was chosen by itself, and what came of it, in a sentence."""
    more = [f"batch {card.batch}", f"{card.threads} threads"]
    more += ["compiled"] if card.compiled else []
    more += [f"{card.processes} processes"] if card.processes > 1 else []
    more += ["streamed"] if card.streamed else []
    more += [f"in {card.accumulation} parts for want of memory"] if card.accumulation > 1 else []
    return (
        f"{card.architecture} trained on {card.device} ({card.device_name}) in {card.precision}, "
        f"{', '.join(more)}: {card.images_per_second:,.0f} images a second, validation accuracy "
        f"{card.validation_accuracy:.3f}."
    )


def parameters(settings: Settings, seed: int) -> TrainingParams:
    """The block `train` with one of the `seeds`.

    Raises:
        SettingsError: A parameter is refused, or the block has a seed of its own.
    """
    where = f"{PARAMS_FILE}: train"
    if "seed" in settings.train:
        raise SettingsError(
            f"{where}.seed is not read: list the seeds of all trainings in `seeds`."
        )
    return TrainingParams.parse({**settings.train, "seed": seed}, where)
