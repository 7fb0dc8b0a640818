"""Stage `train`: a CNN on what a scheme released."""

from pathlib import Path

from veilset.console import progress
from veilset.data.manifest import Manifest
from veilset.models.registry import architecture as architecture_of
from veilset.settings import PARAMS_FILE, load_drops, load_settings
from veilset.stages.project import Project, existing, scheme_of
from veilset.training.loader import read_samples
from veilset.training.loop import Epoch, Subject, train
from veilset.training.params import TrainingParams


def run(root: Path, scheme_name: str, model_name: str) -> None:
    """Writes `data/models/<scheme>-<model>/`."""
    project, settings = Project(root), load_settings(root)
    params = TrainingParams.parse(settings.train, f"{PARAMS_FILE}: train")
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
    with progress(f"train {scheme_name} {model_name}", params.epochs, "epoch") as advance:

        def on_epoch(epoch: Epoch, epochs: int) -> None:
            del epochs
            advance(1, accuracy=epoch.validation_accuracy, loss=epoch.train_loss)

        folder = project.model(scheme_name, model_name)
        train(train_set, held_set, params, subject, folder, on_epoch)
