"""`veilset predict`: what a client does with a trained CNN and images of its own."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
import typer

from veilset import keys
from veilset.cli.images import DemoKey, Fitted, KeyFile, keys_of, scheme_with, settings_of
from veilset.console import progress, say
from veilset.errors import KeyFileError, ProtectionError, SettingsError, SourceError
from veilset.files import write_text
from veilset.keys import Key
from veilset.types import Images

if TYPE_CHECKING:
    from torch import nn

    from veilset.data.sources.base import Source
    from veilset.models.device import DeviceName
    from veilset.schemes.base import Scheme
    from veilset.training.loader import Mask
    from veilset.training.saved import ModelCard

TOP: Final = 3
"""Classes told of each image, the most probable first."""

_BATCH: Final = 256
_BATCH_BYTES: Final = 64 << 20

Fit = Literal["crop", "stretch", "pad"]
Say = Callable[[str], None]


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command()(predict)


def predict(  # noqa: PLR0913
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A trained CNN: a folder of data/models")
    ],
    images: Annotated[
        str,
        typer.Argument(metavar="IMAGES", help="Folder, archive, Parquet, table, or one image"),
    ],
    *,
    output: Annotated[Path | None, typer.Option(help="The CSV file; by default stdout")] = None,
    release: Annotated[
        Path | None, typer.Option(help="The set that it was trained on: names scheme and key")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="The scheme that it was trained on, without --release")
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", help="A parameter of that scheme, key=value; repeatable")
    ] = [],  # noqa: B006
    fitted: Fitted = None,
    key_file: KeyFile = None,
    demo_key: DemoKey = False,
    fit: Annotated[Fit, typer.Option(help="How another shape is fitted to the CNN's")] = "crop",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    workers: Annotated[int, typer.Option(min=1, max=256)] = 2,
    strict: Annotated[
        bool, typer.Option(help="Exit with an error if any file was refused")
    ] = False,
) -> None:
    """Classify images, protected first where the CNN's scheme protects queries; writes a CSV."""
    from veilset.data.ingest import IngestParams, decoded  # noqa: PLC0415
    from veilset.stages.evaluate import EvaluationParams  # noqa: PLC0415

    # What goes to stdout is the table alone.
    tell: Say = say if output is not None else partial(typer.echo, err=True)
    place = EvaluationParams.parse({"device": device}, "predict").device
    if output is not None and output.is_dir():
        raise SettingsError(f"{output} is a folder: give --output the name of a CSV file.")
    network, card = _load(model)
    query = _query(card, _Asked(model, release, scheme, settings, fitted, key_file, demo_key))
    source = _open(images)
    height, width, channels = card.shape
    params = IngestParams.parse(
        {"size": (height, width), "channels": channels, "fit": fit, "workers": workers}, "predict"
    )
    tell(query.words)
    found = _Answers(query, partial(_probabilities, network, card, place))
    with progress("predict", source.count()) as advance:
        results = decoded(source, params)
        while batch := list(islice(results, _batch_size(card.shape))):
            found.add([(item.name, result) for item, result in batch])
            advance(len(batch))
    found.tell_refused(images, tell, strict=strict)
    text = found.table(card.classes)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_text(output, text)
    say(f"Wrote what the CNN says of {len(found.names):,} images to {output}.")


# ------------------------------------------------------------------------------ what is asked for


@dataclass(frozen=True)
class _Asked:
    """The options that say how queries are protected."""

    model: Path
    release: Path | None
    scheme: str | None
    settings: list[str]
    fitted: Path | None
    key_file: Path | None
    demo_key: bool

    def key(self) -> Key:
        """The client's key."""
        return keys_of(self.key_file, None, demo=self.demo_key)[0]


@dataclass(frozen=True)
class _Query:
    """How images become what the network takes.

    Attributes:
        words: The same in one line, for the user.
        scheme: What protects them; None leaves them plain.
        key: Its key; zeros where it has none, as in `veilset.schemes.transform`.
    """

    words: str
    scheme: "Scheme[Any] | None" = None
    key: Key = field(default=Key(bytes(keys.KEY_BYTES)), repr=False)

    def made_of(self, pixels: Images) -> "tuple[Images, Mask | None]":
        """What the network takes of uint8 (N, H, W, C): images, and a mask where there is one."""
        if self.scheme is None:
            return pixels, None
        # The ids of `Protect`, so that an image is protected here as in a client's own code.
        ids = keys.content_ids(keys.derive_key(self.key, "ids of queries"), pixels)
        made = self.scheme.protect(pixels, np.zeros(len(pixels), dtype=np.int64), ids, self.key)
        return made.images, made.side.get("mask")


def _load(folder: Path) -> "tuple[nn.Module, ModelCard]":
    from veilset.training.saved import CARD, load_model  # noqa: PLC0415

    if not (folder / CARD).is_file():
        raise SourceError(
            f"{folder} holds no trained CNN (no {CARD}): give a folder that training wrote, such "
            "as data/models/visualmixer-resnet20-0."
        )
    return load_model(folder)


def _query(card: "ModelCard", asked: _Asked) -> _Query:
    """The scheme and key of queries, or none where they stay plain."""
    from veilset.schemes.plain import Plain  # noqa: PLC0415
    from veilset.training.evaluation import declared_test_set  # noqa: PLC0415

    chosen, fingerprint, where = _chosen(card, asked)
    if isinstance(chosen, Plain):
        return _Query("Images stay plain, as those were that the CNN was trained on.")
    if declared_test_set(chosen.declares) == "plain":
        return _Query(
            f"Images stay plain: {chosen.name}, which the CNN was trained on, protects training "
            "images only."
        )
    if chosen.learns:
        _ = chosen.learnt
    words = (
        f"Images are protected by {chosen.title} ({chosen.name}{where}) before the CNN sees them, "
        "as this scheme declares for queries; they are not written."
    )
    if not chosen.declares.keyed:
        return _Query(words, chosen)
    key = asked.key()
    if fingerprint not in (None, key.fingerprint):
        raise KeyFileError(
            f"the key has fingerprint {key.fingerprint}, but the set that {asked.model} was "
            f"trained on was made with {fingerprint}: give that key by --key-file."
        )
    return _Query(words, chosen, key)


def _chosen(card: "ModelCard", asked: _Asked) -> "tuple[Scheme[Any], str | None, str]":
    """The scheme, fitted if it can be; its key's fingerprint, if known; whose parameters it has."""
    if asked.release is not None and asked.scheme is not None:
        raise SettingsError("--release and --scheme were both given: choose one.")
    if asked.settings and asked.scheme is None:
        raise SettingsError("--set was given without --scheme: name the scheme that it belongs to.")
    if asked.scheme is not None:
        return _named(card, asked, asked.scheme), None, ""
    release, fitted = asked.release, asked.fitted
    if release is None:
        release, fitted = _in_project(card, fitted)
    if release is not None:
        return (*_of_release(card, asked.model, release, fitted), f", as for {release}")
    return _of_card(card, asked.model), None, ""


def _named(card: "ModelCard", asked: _Asked, name: str) -> "Scheme[Any]":
    from veilset.schemes.registry import make_scheme, scheme_names  # noqa: PLC0415

    values = settings_of(asked.settings)
    plain = make_scheme(name, values, "--set")
    # Elsewhere the card has the name of a project's block, which may be any.
    if card.scheme in scheme_names() and card.scheme != name:
        raise SettingsError(
            f"{asked.model} was trained on {card.scheme}, not on {name}: give --scheme "
            f"{card.scheme}, or --release."
        )
    if not plain.learns or not plain.declares.protects_queries:
        return plain
    return scheme_with(name, values, "--set", asked.fitted)


def _in_project(card: "ModelCard", fitted: Path | None) -> tuple[Path | None, Path | None]:
    """The set that the CNN was trained on in the project here, and what its scheme learnt."""
    from veilset.data.manifest import NAME, Manifest  # noqa: PLC0415
    from veilset.settings import DROPS_FILE, load_drops  # noqa: PLC0415
    from veilset.stages.project import Project  # noqa: PLC0415

    if not Path(DROPS_FILE).is_file():
        return None, fitted
    project = Project(Path())
    for drop in load_drops(Path()).names:
        folder = project.protected(card.scheme, drop)
        if (folder / NAME).is_file() and Manifest.load(folder).root in card.trained_on:
            own = project.fitted(card.scheme)
            return folder, fitted or (own if own.is_dir() else None)
    return None, fitted


def _of_release(
    card: "ModelCard", model: Path, release: Path, fitted: Path | None
) -> "tuple[Scheme[Any], str | None]":
    """The scheme that made a set, and the fingerprint of its key."""
    from veilset.data.manifest import Manifest  # noqa: PLC0415
    from veilset.schemes.fitted import load_fitted  # noqa: PLC0415
    from veilset.schemes.registry import scheme_of_record  # noqa: PLC0415

    manifest = Manifest.load(release)
    record = manifest.scheme
    if record is None:
        raise SettingsError(
            f"{release} is a set of plain images, which names no scheme: give the protected set "
            "that the CNN was trained on."
        )
    if card.trained_on and manifest.root not in card.trained_on:
        raise SettingsError(
            f"{model} was not trained on {release} as it is now: give the set that it was trained "
            "on, or --scheme and --set."
        )
    scheme = scheme_of_record(record, str(release))
    if scheme.learns and fitted is not None:
        scheme = scheme.with_fitted(load_fitted(fitted))
        if scheme.fitted_hash != record.get("fitted_hash"):
            raise ProtectionError(
                f"{fitted} is not what {scheme.name} had learnt when it made {release}: give that "
                "by --fitted."
            )
    return scheme, manifest.key_fingerprint


def _of_card(card: "ModelCard", model: Path) -> "Scheme[Any]":
    """The scheme of the card's name, where its parameters do not matter."""
    from veilset.schemes.plain import Plain  # noqa: PLC0415
    from veilset.schemes.registry import make_scheme  # noqa: PLC0415

    with suppress(SettingsError):
        scheme = make_scheme(card.scheme, {}, str(model))
        if isinstance(scheme, Plain) or not scheme.declares.protects_queries:
            return scheme
    raise SettingsError(
        f"{model} was trained on {card.scheme}, and its card does not hold this scheme's "
        "parameters: give --release with the set that it was trained on, or --scheme and --set."
    )


# ------------------------------------------------------------------------------ images in


def _open(text: str) -> "Source[Any]":
    """The source that a text names, or the one image."""
    from veilset.data.containers import Refusal, recognise  # noqa: PLC0415
    from veilset.data.sources.base import FileParams, Item, Source  # noqa: PLC0415
    from veilset.data.sources.registry import open_source  # noqa: PLC0415

    class OneImage(Source[FileParams]):
        """A single file."""

        name = "image"
        title = "one image"
        Parameters = FileParams

        def classes(self) -> None:
            """Not told."""

        def count(self) -> int:
            """One."""
            return 1

        def items(self) -> Iterator[Item]:
            """Yields it; what is longer than allowed is not read to its end, and refused."""
            with Path(self.params.path).open("rb") as file:
                content = file.read(self.params.max_bytes + 1)
            yield Item(Path(self.params.path).name, content)

    path = Path(text).expanduser()
    with suppress(Refusal, OSError):
        with path.open("rb") as file:
            recognise(file.read(512))
        return OneImage(FileParams(path=str(path)), Path())
    return open_source(text, Path())


def _batch_size(shape: tuple[int, ...]) -> int:
    return max(1, min(_BATCH, _BATCH_BYTES // int(np.prod(shape))))


# ------------------------------------------------------------------------------ answers out


def _probabilities(
    network: "nn.Module", card: "ModelCard", device: "DeviceName", pixels: Images,
    mask: "Mask | None",
) -> Any:  # fmt: skip
    """float64 (N, classes)."""
    from veilset.training import evaluation  # noqa: PLC0415

    return evaluation.softmax(evaluation.predict(network, card, pixels, mask, device=device))


@dataclass
class _Answers:
    """What is known of the images so far; pixels are forgotten.

    Attributes:
        query: How images are protected.
        ask: Probabilities float64 (N, classes) of images and masks.
        names: The images that were classified.
        best: Their most probable classes and the probabilities, in order.
        refused: Name, reason and sentence of those that cannot be used.
    """

    query: _Query
    ask: "Callable[[Images, Mask | None], Any]"
    names: list[str] = field(default_factory=list)
    best: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, results: Iterable[tuple[str, Any]]) -> None:
        """Classifies the decoded ones of a batch, and notes the others."""
        from veilset.data.decode import Decoded  # noqa: PLC0415

        taken: list[Images] = []
        for name, result in results:
            if isinstance(result, Decoded):
                self.names.append(name)
                taken.append(result.pixels)
            else:
                self.refused.append((name, result.reason, result.sentence))
        if not taken:
            return
        for row in self.ask(*self.query.made_of(np.stack(taken))):
            order = np.argsort(-row, kind="stable")[:TOP]
            self.best.append(tuple((int(at), float(row[at])) for at in order))

    def tell_refused(self, images: str, tell: Say, *, strict: bool) -> None:
        """Lists what was refused, and why.

        Raises:
            SourceError: No image is left, or one was refused under `strict`.
        """
        for name, _, sentence in self.refused:
            tell(f"refused: {name}: {sentence}")
        total = len(self.names) + len(self.refused)
        counts = Counter(reason for _, reason, _ in self.refused)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        if not self.names:
            raise SourceError(
                f"none of the {total:,} files of {images} can be used ({reasons}): give images "
                "that can be read."
            )
        if self.refused and strict:
            raise SourceError(
                f"{len(self.refused)} of {total} files were refused ({reasons}), and --strict "
                "allows none: nothing was written."
            )
        if self.refused:
            tell(f"Refused {len(self.refused)} of {total} files: {reasons}.")

    def table(self, classes: tuple[str, ...]) -> str:
        """The CSV: a line an image, in the source's order; empty where there are fewer classes."""
        from veilset.data.records import spreadsheet_cell  # noqa: PLC0415

        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        ranks = [f"_{rank}" if rank > 1 else "" for rank in range(1, TOP + 1)]
        writer.writerow(
            ["name", *(f"{word}{n}" for n in ranks for word in ("class", "probability"))]
        )
        for name, best in zip(self.names, self.best, strict=True):
            cells = [cell for at, p in best for cell in (spreadsheet_cell(classes[at]), f"{p:.6f}")]
            writer.writerow([spreadsheet_cell(name), *cells, *[""] * (2 * TOP - len(cells))])
        return text.getvalue()
