"""Stage `fit`: what a scheme learns from plain images."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from veilset.console import progress, say, up_to
from veilset.data.manifest import Manifest
from veilset.data.splits import read_split
from veilset.params import Params
from veilset.schemes.fitted import Fitted, Lessons, save_fitted
from veilset.settings import PARAMS_FILE, load_drops, load_settings
from veilset.stages.project import Project, scheme_of


class FitParams(Params):
    """What holds for all schemes that learn: the block `fit`.

    Attributes:
        limit: At most so many training images are learnt from, and a quarter as many judge it: all
            of them are held in memory.
        device: Where schemes that learn are fitted, as torch names it; `auto` is CUDA where there
            is one.
    """

    limit: int = Field(50_000, ge=8, le=10_000_000)
    device: Literal["auto", "cpu", "cuda"] = "auto"


def run(root: Path, scheme_name: str) -> None:
    """Writes `data/fitted/<scheme>/`: `fitted.json`, and the arrays where something was learnt."""
    project, settings = Project(root), load_settings(root)
    params = FitParams.parse(settings.fit, f"{PARAMS_FILE}: fit")
    scheme = scheme_of(settings, scheme_name)
    if not scheme.learns:
        nothing = Fitted(scheme.name, scheme.version, scheme.params.canonical())
        save_fitted(project.fitted(scheme_name), nothing)
        return
    folders = [project.ingested(drop) for drop in load_drops(root).fit_drops]
    scheme.device = device_of(params.device)
    with progress(f"fit {scheme_name}", None, "step") as advance:
        fitted = scheme.fit(read_lessons(folders, params.limit), up_to(advance))
    save_fitted(project.fitted(scheme_name), fitted)
    say(words(fitted))


def read_lessons(folders: list[Path], limit: int) -> Lessons:
    """The plain images of these ingested drops as lessons.

    Raises:
        SourceError: A split has no image, or the drops differ in shape or classes.
    """
    _, labels, images = read_split(folders, "train", limit)
    _, held_labels, held_images = read_split(folders, "validation", max(1, limit // 4))
    classes = len(Manifest.load(folders[0]).classes)
    return Lessons(images, labels, held_images, held_labels, classes)


def device_of(name: str) -> str:
    """`auto` as a device that torch knows."""
    if name != "auto":
        return name
    import torch  # noqa: PLC0415 - most schemes need none

    return "cuda" if torch.cuda.is_available() else "cpu"


def words(fitted: Fitted) -> str:
    """What a scheme learnt, in one line."""
    facts = ", ".join(f"{name} {value}" for name, value in sorted(fitted.facts.items()))
    return f"fit {fitted.scheme}: {facts or 'done'}."
