"""Stage `train`: a CNN on what a scheme released."""

from pathlib import Path

from veilset.console import progress
from veilset.data.manifest import Manifest
from veilset.errors import SettingsError
from veilset.models.registry import architecture as architecture_of
from veilset.settings import PARAMS_FILE, Settings, load_drops, load_settings
from veilset.stages.project import Project, existing, scheme_of
from veilset.training.loader import read_samples
from veilset.training.loop import Epoch, Subject, train
from veilset.training.params import TrainingParams


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
    _, train_set = read_samples(folders, "train", masks=masks)
    _, held_set = read_samples(folders, "validation", masks=masks)
    with progress(f"train {scheme_name} {model_name} {seed}", params.epochs, "epoch") as advance:

        def on_epoch(epoch: Epoch, epochs: int) -> None:
            del epochs
            advance(1, accuracy=epoch.validation_accuracy, loss=epoch.train_loss)

        folder = project.model(scheme_name, model_name, params.seed)
        train(train_set, held_set, params, subject, folder, on_epoch)


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
