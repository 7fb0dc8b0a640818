"""Commands on one folder, archive or table of images: protect, attack, reassess, verify, export."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from veilset import keys
from veilset.console import progress, say, up_to
from veilset.errors import CorruptError, KeyFileError, ReleaseError, SettingsError, SourceError
from veilset.files import read_table
from veilset.keys import Key

if TYPE_CHECKING:
    from veilset.attacks.base import Case, Effort
    from veilset.data.shards import ImageSet
    from veilset.release.gate import GateParams
    from veilset.release.signing import PublicKey
    from veilset.schemes.base import Scheme

Format = Literal["arrow", "parquet", "imagefolder", "webdataset"]

KeyFile = Annotated[
    Path | None, typer.Option(help="The owner's key file; by default the project's keys")
]
IdsKeyFile = Annotated[
    Path | None, typer.Option(help="The secret for image ids; by default derived from the key file")
]
Fitted = Annotated[
    Path | None, typer.Option(help="What `veilset fit` wrote, for a scheme that learns")
]
DemoKey = Annotated[bool, typer.Option(help="Use the public demo key: protects from nobody")]
ReleaseFolder = Annotated[
    Path, typer.Argument(metavar="RELEASE", help="A protected set, as `veilset protect` made it")
]
Other = Annotated[
    Path | None, typer.Option(help="Another release of the same images, to link with")
]
OtherKeyFile = Annotated[
    Path | None, typer.Option(help="The key that made the other one, if it is not the same")
]
Model = Annotated[
    Path | None, typer.Option(help="A CNN that was trained on the release: a folder of data/models")
]
AttackOutput = Annotated[
    Path | None, typer.Option(help="For results; by default RELEASE-attacks. Stays with you")
]


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    for command in (fit, protect, attack, reassess, verify, export, ledger):
        app.command()(command)


def fit(  # noqa: PLR0913
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Plain images to learn from, with classes")
    ],
    output: Annotated[Path, typer.Argument(help="Folder for what the scheme learns")],
    *,
    scheme: Annotated[str, typer.Option(help="Name of a scheme: see `veilset schemes`")],
    settings: Annotated[
        list[str], typer.Option("--set", help="A parameter of the scheme, key=value; repeatable")
    ] = [],  # noqa: B006
    ids_key_file: IdsKeyFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    limit: Annotated[int, typer.Option(min=8, help="Learn from at most so many images")] = 50_000,
    workers: Annotated[int, typer.Option(min=1, max=256)] = 2,
    size: Annotated[str, typer.Option(help="Height x width, e.g. 96x96 or 96; or auto")] = "auto",
    channels: Annotated[str, typer.Option(help="1 (grey), 3 (colour), or auto")] = "auto",
) -> None:
    """Let a scheme learn from plain images; give OUTPUT to `veilset protect --fitted`."""
    from veilset.schemes.fitted import save_fitted  # noqa: PLC0415
    from veilset.schemes.registry import make_scheme  # noqa: PLC0415
    from veilset.stages.fit import FitParams, device_of, read_lessons, words  # noqa: PLC0415

    asked = FitParams.parse({"limit": limit, "device": device}, "fit")
    chosen = make_scheme(scheme, settings_of(settings), "--set", device=device_of(asked.device))
    if not chosen.learns:
        raise SettingsError(f"{scheme} learns nothing: `veilset protect` needs no --fitted for it.")
    private = output.with_name(f"{output.name}-private")
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The ids choose the roles alone; nothing that is written shows them.
    ids_key = keys.DEMO_IDS_KEY if ids_key_file is None else keys.read_key_file(ids_key_file)
    overrides = {"workers": workers, "shares": {"train": 0.85, "validation": 0.15, "test": 0,
                                                "auxiliary": 0, "gallery": 0}}  # fmt: skip
    _ingest(source, private, ids_key, overrides, size=size, channels=channels, strict=False)
    with progress(f"fit {scheme}", None, "step") as advance:
        lessons = read_lessons([private / "ingested"], asked.limit)
        fitted = chosen.fit(lessons, up_to(advance))
    save_fitted(output, fitted)
    say(words(fitted))
    say(f"Keep {output} and {private} to yourself: they were made from plain images.")


def protect(  # noqa: PLR0913
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Folder, archive, Parquet, table, or digits")
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the protected set")],
    *,
    scheme: Annotated[str, typer.Option(help="Name of a scheme: see `veilset schemes`")],
    settings: Annotated[
        list[str], typer.Option("--set", help="A parameter of the scheme, key=value; repeatable")
    ] = [],  # noqa: B006
    fitted: Fitted = None,
    key_file: KeyFile = None,
    ids_key_file: IdsKeyFile = None,
    demo_key: DemoKey = False,
    format: Annotated[Format, typer.Option(help="Format of the protected set")] = "arrow",
    workers: Annotated[int, typer.Option(min=1, max=256)] = 2,
    size: Annotated[str, typer.Option(help="Height x width, e.g. 96x96 or 96; or auto")] = "auto",
    channels: Annotated[str, typer.Option(help="1 (grey), 3 (colour), or auto")] = "auto",
    private: Annotated[
        Path | None, typer.Option(help="For what must stay with you; by default OUTPUT-private")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Enter the privacy budget that this release spends here")
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Exit with an error if any file was quarantined")
    ] = False,
) -> None:
    """Protect images by a scheme. OUTPUT may be given away; OUTPUT-private must stay with you."""
    from veilset.data.export import export_set  # noqa: PLC0415
    from veilset.data.shards import ImageSet  # noqa: PLC0415
    from veilset.release.ledger import budget, spend  # noqa: PLC0415
    from veilset.schemes.protect import protect_set  # noqa: PLC0415

    chosen = scheme_with(scheme, settings_of(settings), "--set", fitted)
    if ledger is not None and budget(chosen.record()) is None:
        raise SettingsError(f"{scheme} guarantees nothing, so --ledger has nothing to enter.")
    key, ids_key = keys_of(key_file, ids_key_file, demo=demo_key)
    private = private or output.with_name(f"{output.name}-private")
    _require_apart(output, private)
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    overrides = {"workers": workers, "shares": {"train": 1, "validation": 0, "test": 0,
                                                "auxiliary": 0, "gallery": 0}}  # fmt: skip
    _ingest(source, private, ids_key, overrides, size=size, channels=channels, strict=strict)
    images = ImageSet.open(private / "ingested")
    target = output if format == "arrow" else private / "protected"
    held_back = 0 if chosen.declares.protects_queries else images.manifest.splits.get("test", 0)
    total = sum(images.manifest.splits.values()) - held_back
    with progress(f"protect by {scheme}", total) as advance:
        manifest = protect_set(
            images, chosen, key, target, private / "provenance",
            dataset=output.name, workers=workers, progress=advance,
        )  # fmt: skip
    if format != "arrow":
        export_set(ImageSet.open(target), output, format, replace=True)
    say(f"Protected {sum(manifest.splits.values()):,} images by {chosen.title} into {output}.")
    if held_back:
        say(
            f"{held_back:,} test images stay unprotected with you: {scheme} does not protect "
            "queries, so models are tested on plain images."
        )
    if ledger is not None:
        links = sorted((private / "provenance").glob("links-*.parquet"))
        ids = [str(name) for path in links for name in read_table(path)["id"]]
        for spent in spend(ledger, manifest.root, chosen.record(), ids).values():
            say(f"Ledger {ledger}: {spent.words()}.")
    say(f"Keep {private} to yourself: it holds originals, quarantine and provenance.")


def attack(  # noqa: PLR0913
    release: ReleaseFolder,
    *,
    originals: Annotated[str, typer.Option(help="The images that it was made from")],
    fitted: Fitted = None,
    key_file: KeyFile = None,
    ids_key_file: IdsKeyFile = None,
    demo_key: DemoKey = False,
    other: Other = None,
    other_key_file: OtherKeyFile = None,
    model: Model = None,
    attacks: Annotated[
        list[str], typer.Option("--attacks", help="Only this attack; repeatable; by default all")
    ] = [],  # noqa: B006
    full: Annotated[bool, typer.Option("--full", help="The long attacks of a release")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything the attacker draws")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256)] = 2,
    output: AttackOutput = None,
) -> None:
    """Attack a protected set: how much leaks, and whether that passes for whom."""
    from veilset.attacks.registry import ATTACKS  # noqa: PLC0415
    from veilset.data.shards import ImageSet  # noqa: PLC0415

    for name in attacks:
        ATTACKS.find(name, "--attacks")
    public = ImageSet.open(release)
    scheme = _released_by(public, fitted)
    key, ids_key = keys_of(key_file, ids_key_file, demo=demo_key)
    output = output or _attack_folder(release)
    _require_apart(release, output)
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    height, width, depth = public.shape
    _ingest(originals, output, ids_key, {"workers": workers},
            size=f"{height}x{width}", channels=str(depth), strict=False)  # fmt: skip
    effort: Effort = "full" if full else "quick"
    beside = _Beside(other, other_key_file, model)
    _attack_and_judge(
        public, scheme, key, output, beside, asked=attacks, seed=seed, effort=effort
    )  # fmt: skip


def reassess(  # noqa: PLR0913
    release: ReleaseFolder,
    *,
    fitted: Fitted = None,
    key_file: KeyFile = None,
    ids_key_file: IdsKeyFile = None,
    demo_key: DemoKey = False,
    other: Other = None,
    other_key_file: OtherKeyFile = None,
    model: Model = None,
    force: Annotated[bool, typer.Option("--force", help="Attack even if nothing changed")] = False,
    output: AttackOutput = None,
) -> None:
    """Attack again, as recorded, where the attack suite or the release has changed since."""
    from veilset.data.shards import ImageSet  # noqa: PLC0415
    from veilset.release.card import outdated, read_card  # noqa: PLC0415

    public = ImageSet.open(release)
    output = output or _attack_folder(release)
    card = read_card(output / "results/card.json")
    reason = outdated(card, public.manifest.root)
    if reason is None and not force:
        say(f"Up to date: {release} is what was attacked, by the present suite {card.suite}.")
        for verdict in card.verdicts.values():
            say(verdict.words)
        return
    say(f"Attacking again, because {reason or 'of --force'}.")
    scheme = _released_by(public, fitted)
    key, _ = keys_of(key_file, ids_key_file, demo=demo_key)
    beside = _Beside(other, other_key_file, model)
    _attack_and_judge(
        public, scheme, key, output, beside, asked=card.repeat.attacks, seed=card.repeat.seed,
        effort=card.repeat.effort,
    )  # fmt: skip


def verify(
    dataset: Annotated[Path, typer.Argument(help="A set, ingested or protected, or a release")],
    *,
    public_key: Annotated[
        Path | None, typer.Option(help="Of a release: its owner's public key, as you were given it")
    ] = None,
    list_: Annotated[
        Path | None,
        typer.Option("--list", help="The owner's releases.dsse.json: tells what was withdrawn"),
    ] = None,
) -> None:
    """Check every byte of a set against its hashes, or of a release against its signature."""
    from veilset.data.shards import ImageSet  # noqa: PLC0415
    from veilset.release.bundle import STATEMENT  # noqa: PLC0415

    if public_key is not None or (dataset / STATEMENT).exists():
        _verify_release(dataset, public_key, list_)
        return
    images = ImageSet.open(dataset)
    total = sum(entry.bytes for entry in images.manifest.shards)
    with progress("verify", total, "B") as advance:
        images.verify(up_to(advance))
    rows = sum(images.manifest.splits.values())
    say(f"{dataset}: all {total:,} bytes of {rows:,} images are as recorded.")
    say(f"Root {images.manifest.root}.")


def _verify_release(folder: Path, public_key: Path | None, list_: Path | None) -> None:
    from veilset.release.bundle import is_bundle, verify_release  # noqa: PLC0415
    from veilset.release.history import read_release_list  # noqa: PLC0415
    from veilset.release.signing import read_public_key  # noqa: PLC0415

    if public_key is None:
        raise KeyFileError(
            f"{folder} is a signed release: give --public-key FILE with its owner's public key, "
            "from the owner and not from the release."
        )
    key = read_public_key(public_key)
    if is_bundle(folder, key):
        _verify_learnt(folder, key)
        return
    with progress("verify", None, "B") as advance:
        found = verify_release(folder, key, up_to(advance))
    for fault in found.faults:
        say(f"- {fault}")
    if found.statement is None or not found.sound:
        raise CorruptError(
            f"{folder} is not what the holder of {key.fingerprint} signed: see above."
        )
    told = found.statement.predicate
    if list_ is not None:
        gone = read_release_list(list_, key).withdrawal_of(told.root)
        if gone is not None:
            raise ReleaseError(
                f"{folder} was withdrawn by its owner on {gone.withdrawn} ({gone.reason}): delete "
                "it, and what was made from it."
            )
    size = f"all {found.bytes:,} bytes of {found.files} files"
    say(f"{folder}: {size} are as {key.fingerprint} signed.")
    say(f"{told.dataset} by {told.scheme.title}, released {told.released} ({told.receiver}).")


def _verify_learnt(folder: Path, key: "PublicKey") -> None:
    from veilset.release.learnt import membership_words, verify_learnt  # noqa: PLC0415

    found = verify_learnt(folder, key)
    for fault in found.faults:
        say(f"- {fault}")
    if found.statement is None or found.faults:
        raise CorruptError(
            f"{folder} is not what the holder of {key.fingerprint} signed: see above."
        )
    told = found.statement.predicate
    say(f"{folder}: {len(found.statement.subject)} files are as {key.fingerprint} signed.")
    say(f"What {told.scheme.title} learnt from {told.dataset}, released {told.released}.")
    say(membership_words(told.membership))


def export(
    dataset: Annotated[Path, typer.Argument(help="A protected set")],
    output: Annotated[Path, typer.Argument(help="Folder to make")],
    *,
    format: Annotated[Format, typer.Option(help="Which format")],
    replace: Annotated[bool, typer.Option(help="Replace a folder that is there")] = False,
) -> None:
    """Write a set in another format."""
    from veilset.data.export import export_set  # noqa: PLC0415
    from veilset.data.shards import ImageSet  # noqa: PLC0415

    images = ImageSet.open(dataset)
    if images.manifest.kind != "protected":
        raise SettingsError(
            f"{dataset} is an ingested set of plain images, which never leaves the place where it "
            "is: export a protected one."
        )
    export_set(images, output, format, replace=replace)
    say(f"Wrote {sum(images.manifest.splits.values()):,} images as {format} into {output}.")


def ledger(
    path: Annotated[Path, typer.Argument(metavar="LEDGER", help="What `--ledger` wrote")],
) -> None:
    """Say how much privacy budget images have spent over all releases."""
    from veilset.release.ledger import read, totals  # noqa: PLC0415

    if not path.is_file():
        raise SourceError(f"{path} is no ledger: give what `veilset protect --ledger` wrote.")
    for spent in totals(read(path)).values():
        say(f"{spent.words()}.")


def scheme_with(
    name: str, parameters: Mapping[str, Any], where: str, fitted: Path | None
) -> "Scheme[Any]":
    """A scheme ready to protect; parameters left out are those that it was fitted with."""
    from veilset.schemes.fitted import load_fitted  # noqa: PLC0415
    from veilset.schemes.registry import make_scheme  # noqa: PLC0415

    found = None if fitted is None else load_fitted(fitted)
    if found is not None and found.scheme == name:
        parameters = {**json.loads(found.parameters), **parameters}
    scheme = make_scheme(name, parameters, where, fitted=found)
    if scheme.learns:
        _ = scheme.learnt
    return scheme


def _released_by(public: "ImageSet", fitted: Path | None) -> "Scheme[Any]":
    """The scheme that made a protected set."""
    from veilset.schemes.fitted import load_fitted  # noqa: PLC0415
    from veilset.schemes.registry import scheme_of_record  # noqa: PLC0415

    learnt = None if fitted is None else load_fitted(fitted)
    return scheme_of_record(public.manifest.scheme or {}, str(public.folder), fitted=learnt)


@dataclass(frozen=True)
class _Beside:
    """What the attacker has beside the release, and the key that made the other one, if another."""

    other: Path | None
    other_key_file: Path | None
    model: Path | None

    def given_to(self, case: "Case", public: "ImageSet", key: Key) -> "Case":
        """The case with all of it in her hands."""
        from veilset.attacks.case import with_network, with_other_release  # noqa: PLC0415
        from veilset.data.shards import ImageSet  # noqa: PLC0415

        if self.other is not None:
            found = ImageSet.open(self.other)
            file = self.other_key_file
            own = key if file is None else keys.read_key_file(file)
            case = with_other_release(case, found, _released_by(found, None), own)
        return case if self.model is None else with_network(case, [public], self.model)


def _attack_folder(release: Path) -> Path:
    return release.with_name(f"{release.name}-attacks")


def _attack_and_judge(
    public: "ImageSet",
    scheme: "Scheme[Any]",
    key: Key,
    output: Path,
    beside: _Beside,
    *,
    asked: Sequence[str],
    seed: int,
    effort: "Effort",
) -> None:
    """Attacks a release on `output/ingested`; writes and says results, verdicts and the card."""
    from veilset.attacks.case import case_from_originals  # noqa: PLC0415
    from veilset.attacks.registry import attack_names  # noqa: PLC0415
    from veilset.attacks.suite import run_suite  # noqa: PLC0415
    from veilset.data.shards import ImageSet  # noqa: PLC0415
    from veilset.files import write_json, write_text  # noqa: PLC0415
    from veilset.release.card import leakage_card  # noqa: PLC0415
    from veilset.release.gate import read_results, verdicts_of  # noqa: PLC0415
    from veilset.report.load import read_attacks, read_examples  # noqa: PLC0415
    from veilset.report.model import Card  # noqa: PLC0415
    from veilset.report.page import render_card  # noqa: PLC0415
    from veilset.stages.attack import show_progress, table  # noqa: PLC0415

    params = _gate_params()
    originals, results = ImageSet.open(output / "ingested"), output / "results"
    case = case_from_originals(public, originals, scheme, key, seed=seed, effort=effort)
    case = beside.given_to(case, public, key)
    with show_progress(scheme.name) as report:
        suite = run_suite(case, {name: {} for name in asked or attack_names()},
                          dataset=public.manifest.dataset, progress=report)  # fmt: skip
    suite.write(results)
    card = leakage_card(
        read_attacks(results / "results.json"),
        verdicts_of(read_results(results / "results.json"), scheme, params), scheme, params,
        asked=asked, release=public.manifest.root,
        demo_key=public.manifest.key_fingerprint == keys.DEMO_PROTECTION_KEY.fingerprint,
    )  # fmt: skip
    shown, examples = Card.model_validate(card), read_examples(results / "examples.npz")
    write_text(results / "card.html", render_card(shown, examples, originals.manifest.classes))
    # The card last: until it is there, `reassess` goes by the old one.
    write_json(results / "card.json", card)
    say(table(suite.results))
    for verdict in shown.verdicts.values():
        say(verdict.words)
    say(f"Leakage card: {results / 'card.html'}.")
    say(f"Results, raw scores and pictures: {results} (shows originals; keep it).")


def _gate_params() -> "GateParams":
    """The thresholds of the project here, or the default ones where there is none."""
    from veilset.release.gate import GateParams  # noqa: PLC0415
    from veilset.settings import PARAMS_FILE, load_settings  # noqa: PLC0415

    if not Path(PARAMS_FILE).is_file():
        return GateParams()
    return GateParams.parse(load_settings(Path()).gate, f"{PARAMS_FILE}: gate")


def settings_of(pairs: list[str]) -> Mapping[str, Any]:
    """`key=value` texts as YAML reads the values."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise SettingsError(f"--set {pair} is not key=value: write e.g. --set region_px=16.")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            values[name] = text
    return values


def keys_of(key_file: Path | None, ids_key_file: Path | None, *, demo: bool) -> tuple[Key, Key]:
    """The protection key and the secret for ids."""
    if demo:
        if key_file is not None or ids_key_file is not None:
            raise KeyFileError("--demo-key and a key file were both given: choose one.")
        return keys.DEMO_PROTECTION_KEY, keys.DEMO_IDS_KEY
    if key_file is not None:
        key = keys.read_key_file(key_file)
        named = None if ids_key_file is None else keys.read_key_file(ids_key_file)
        return key, named or keys.derive_key(key, "ids")
    if not keys.fingerprint_path("protection", Path()).is_file():
        raise KeyFileError(
            "no key: make one by `veilset key new --key-file KEY` and give --key-file KEY, or run "
            "this in a project that has one, or give --demo-key to try it."
        )
    return keys.project_key("protection", Path()), keys.project_key("ids", Path())


def _require_apart(public: Path, private: Path) -> None:
    """Refuses places where what is private would lie in what is given away, or files be lost."""
    if private.resolve().is_relative_to(public.resolve()):
        raise SettingsError(
            f"{private} lies inside {public}, which may be given away: choose another folder."
        )
    occupied = public.is_dir() and any(public.iterdir())
    if public.is_file() or (occupied and not (public / "manifest.json").is_file()):
        raise SettingsError(f"{public} is there and is no image set: choose another folder.")


def _ingest(
    text: str,
    private: Path,
    ids_key: Key,
    overrides: Mapping[str, Any],
    *,
    size: str,
    channels: str,
    strict: bool,
) -> None:
    """Ingests a source into `private/ingested` and `private/quarantine`."""
    from veilset.data.ingest import IngestParams, ingest  # noqa: PLC0415
    from veilset.data.sources.registry import open_source  # noqa: PLC0415
    from veilset.data.survey import survey  # noqa: PLC0415
    from veilset.stages.ingest import words  # noqa: PLC0415

    source = open_source(text, Path())
    shape: dict[str, Any] = {"size": _size(size), "channels": _channels(channels)}
    if "auto" in (size, channels):
        found = survey(source)
        shape = {
            "size": found.size if size == "auto" else shape["size"],
            "channels": found.channels if channels == "auto" else shape["channels"],
        }
        height, width = found.size
        say(f"auto: the first {found.looked_at} images are mostly {height}x{width}, "
            f"{'grey' if found.channels == 1 else 'colour'}.")  # fmt: skip
    params = IngestParams.parse({**overrides, **shape}, "protect")
    with progress("read", source.count()) as advance:
        summary = ingest(
            source, params, ids_key, "input", private / "ingested", private / "quarantine",
            progress=up_to(advance),
        )  # fmt: skip
    say(words(summary))
    refused = sum(summary.quarantined.values())
    if refused:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.quarantined.items())
        say(f"Quarantined with reasons in {private / 'quarantine/quarantine.csv'}: {reasons}.")
    if refused and strict:
        raise SourceError(
            f"{refused} of {summary.total} files were quarantined, and --strict allows none: see "
            f"{private / 'quarantine/quarantine.csv'}; nothing was protected."
        )


def _size(text: str) -> Any:
    if text == "auto":
        return text
    parts = text.lower().split("x")
    if not all(part.isdecimal() for part in parts) or len(parts) > 2:
        raise SettingsError(f"--size {text} is no size: write e.g. 96, 112x92, or auto.")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _channels(text: str) -> Any:
    if text not in ("1", "3", "auto"):
        raise SettingsError(f"--channels {text} is neither 1 (grey), 3 (colour) nor auto.")
    return text if text == "auto" else int(text)
