"""The page that a receiver reads first: what a release is, what is known of it, how to use it.

Everything in it comes from the statement and the leakage card, so it says nothing that is not
signed. The lines that load the data are run by a test.

Source: ours, after Gebru et al., Datasheets for Datasets, CACM 2021.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from veilset.release.gate import TEMPLATE_WORDS
from veilset.release.statement import Predicate, SchemeFacts, UtilityFacts
from veilset.report.model import AttackResult, Card
from veilset.report.words import NONE, STATUS, TEMPLATES, figure, interval, points

_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>#|~$&])")
_RISKS: Final = {
    "singling_out": "singling out", "linkability": "linkability", "inference": "inference",
}  # fmt: skip
_ATTACKERS: Final = {
    "outside_trainer": "by who is given it to train on",
    "public_release": "by anybody who holds candidate originals, once it is published",
}
_SHOWN_CLASSES: Final = 100


@dataclass(frozen=True)
class Terms:
    """What the owner adds by hand.

    Attributes:
        licence: Under which terms the data may be used: its text, or its address.
        publisher: Who releases it, as receivers shall see it.
    """

    licence: str
    publisher: str


def datasheet(facts: Predicate, card: Card, classes: tuple[str, ...], terms: Terms) -> str:
    """The receiver's page as Markdown.

    Args:
        facts: What the statement says.
        card: The leakage card.
        classes: Class names in the order of the labels.
        terms: What the owner adds.

    Returns:
        The page, which ends in a newline. Names and reasons in it are escaped.
    """
    sections: tuple[tuple[str, Iterable[str]], ...] = (
        ("What it is", _what(facts, classes, terms)),
        ("How it was made", _how(facts)),
        ("For whom", _whom(facts)),
        ("What was measured", _measured(facts, card)),
        ("What it is good for", _use(facts)),
        ("Limits and residual risks", _risks(facts)),
        ("What it must not be used for", _prohibited(facts)),
        ("Licence", _fenced("text", terms.licence.strip().splitlines())),
        ("How to verify it", _verify()),
        ("How to load it", _load(facts)),
    )
    lines = [f"# {plain(facts.dataset)}, protected by {plain(facts.scheme.title)}", ""]
    for title, body in sections:
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def category(scheme: SchemeFacts) -> str:
    """What the law calls such data, in one sentence.

    Every published id is made under the owner's key, and a keyed scheme depends on it as a whole.
    """
    if not scheme.declaration.keyed:
        return (
            "These images are pseudonymised and not anonymous while their owner keeps the originals"
            " or the key behind their ids: the scheme itself has no key, and the owner can tell "
            "which original is behind which image."
        )
    undo = (
        "whoever holds it can undo the scheme"
        if scheme.declaration.reversible
        else "whoever holds it can repeat what was done to any image"
    )
    return (
        "These images are pseudonymised and not anonymous while the owner's key exists, because "
        f"{undo}; data protection law applies to them as to the originals."
    )


def plain(text: str) -> str:
    """Text on one line in which nothing is Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


# ------------------------------------------------------------------------------ sections


def _what(facts: Predicate, classes: tuple[str, ...], terms: Terms) -> Iterator[str]:
    counts: dict[str, int] = {}
    for one in facts.sets:
        for split, count in one.splits.items():
            counts[split] = counts.get(split, 0) + count
    height, width, channels = facts.sets[0].shape
    kind = "grey" if channels == 1 else "colour"
    splits = ", ".join(f"{count:,} {plain(name)}" for name, count in sorted(counts.items()))
    yield (
        f"{sum(counts.values()):,} {kind} images of {height} x {width} pixels in {len(classes)} "
        f"classes ({splits}), protected so that CNNs can learn from them and people cannot "
        f"recognise them. Released by {plain(terms.publisher)} on {facts.released.isoformat()}."
    )
    yield ""
    yield f"**{category(facts.scheme)}**"
    yield ""
    named = ", ".join(
        f"{label} {plain(name)}" for label, name in enumerate(classes[:_SHOWN_CLASSES])
    )
    more = f", and {len(classes) - _SHOWN_CLASSES} more" if len(classes) > _SHOWN_CLASSES else ""
    yield f"Labels: {named}{more}."
    for name, columns in facts.sets[0].columns.items():
        yield f"Beside each image: `{name}`, {plain(columns)}."


def _how(facts: Predicate) -> Iterator[str]:
    scheme, declared = facts.scheme, facts.scheme.declaration
    yield (
        f"Scheme `{scheme.name}`, version {scheme.version} ({plain(declared.provenance)}; "
        f"{plain(declared.source)}), with these parameters:"
    )
    yield ""
    yield from _table(("parameter", "value"), _parameters(scheme))
    yield ""
    yield f"- Guarantee: {plain(declared.guarantee) if declared.guarantee else 'none'}."
    yield f"- Key fingerprint: `{facts.key_fingerprint}`; the key itself stays with the owner."
    if facts.budget is not None:
        spent = facts.budget
        yield (
            f"- Privacy budget ({plain(spent.metric)}): {spent.release:g} for this release; with "
            f"it, single images have spent up to {spent.most:g} in {spent.releases} releases."
        )
    for one in facts.sets:
        found = facts.checks[one.folder]
        warned = ", ".join(map(plain, found.warnings)) or "none"
        yield (
            f"- `{one.folder}`: {sum(one.splits.values()):,} images, root `{one.root}`; all "
            f"critical checks of the data passed, warnings: {warned}."
        )
    versions = ", ".join(f"{plain(n)} {plain(v)}" for n, v in sorted(facts.packages.items()))
    yield f"- Code: {f'commit `{facts.commit}`' if facts.commit else 'commit not recorded'}."
    yield f"- Packages: {versions or 'not recorded'}."


def _parameters(scheme: SchemeFacts) -> Iterator[tuple[str, str]]:
    for name, value in sorted(scheme.parameters.items()):
        text = json.dumps(value, ensure_ascii=False).replace("`", "'").replace("|", "\\|")
        yield f"`{name}`", f"`{text}`"


def _whom(facts: Predicate) -> Iterator[str]:
    title, who = TEMPLATES[facts.receiver]
    yield f"This release is made for one kind of receiver: **{title.lower()}**, {who}."
    yield ""
    for name in TEMPLATE_WORDS:
        found = facts.verdicts.get(name)
        if found is None:
            continue
        limits = ", ".join(f"{_RISKS[k]} {v:g}" for k, v in sorted(found.limits.items()))
        stale = f" It is stale: {plain(found.stale)}." if found.stale else ""
        yield (
            f"- {TEMPLATES[name][0]}: **{found.verdict}**. {plain(found.words)}{stale} (Limits: "
            f"{limits}; attack suite {plain(found.suite)}.)"
        )
    if facts.waiver is not None:
        waiver = facts.waiver
        yield ""
        yield (
            f"**The verdict was waived** by {plain(waiver.name)} on {waiver.date.isoformat()}, "
            f"with this reason: {plain(waiver.reason)}"
        )


def _measured(facts: Predicate, card: Card) -> Iterator[str]:
    yield (
        "Attacks were run on the protected images. Each figure has a 95 % interval, and beside it "
        "what guessing scores. A verdict goes by the upper end of the worst interval, and says "
        "nothing of attacks that were not run or not yet found."
    )
    yield ""
    for result in card.attacks:
        yield f"- {plain(result.title or result.attack)} ({_attacker(result)}): {_figures(result)}"
    if not card.attacks:
        yield "- No attack gave a figure."
    for absent in card.not_tested:
        yield f"- {plain(absent.title)}: **not tested**, because {plain(absent.reason)}."
    if facts.scheme.declaration.keyed:
        yield f"- {plain(card.key_space_words)}"


def _attacker(result: AttackResult) -> str:
    risk, who = _RISKS.get(result.risk, plain(result.risk)), _ATTACKERS.get(result.attacker)
    return f"{risk}; {who}" if who else risk


def _figures(result: AttackResult) -> str:
    metric = result.metric or result.metric_words
    value = figure(result.value, metric)
    around = interval(result.low, result.high, metric)
    guess = f", guessing {figure(result.chance, metric)}" if result.chance is not None else ""
    aimed = f", {result.targets:,} targets" if result.targets is not None else ""
    words = f"{plain(result.words)} " if result.words else ""
    odd = STATUS.get(result.status or "")
    doubt = f" It supports no conclusion: {odd}." if odd else ""
    within = f" ({around})" if around else ""
    return (
        f"{words}{plain(result.metric_words or 'Success')}: {value}{within}{guess}{aimed}.{doubt}"
    )


def _use(facts: Predicate) -> Iterator[str]:
    queries = (
        "Whoever uses such a CNN protects its queries by the same scheme."
        if facts.scheme.declaration.protects_queries
        else "Queries stay plain: the scheme protects training images only."
    )
    yield f"Training CNNs that classify such images. {queries}"
    yield ""
    for row in facts.utility:
        yield f"- {_accuracy(row)}"
    if not facts.utility:
        yield "- No CNN was trained on it, so nothing is known of its use."
    yield f"- {_floors(facts)}"


def _accuracy(row: UtilityFacts) -> str:
    tested = f"{row.n:,} {plain(row.test_on)} test images" if row.n else "test images"
    seeds = f" over {row.runs} seeds" if row.runs > 1 else ""
    loss = ""
    if row.loss_points is not None:
        around = (
            f" ({points(row.loss_low)} to {points(row.loss_high)})"
            if row.loss_low is not None
            else ""
        )
        loss = f", {points(row.loss_points)} points{around} less than trained on plain images"
    within = f" ({interval(row.low, row.high)})" if row.low is not None else ""
    found = figure(row.accuracy)
    return f"{plain(row.model)}: accuracy {found}{within} on {tested}{seeds}{loss}."


def _floors(facts: Predicate) -> str:
    floors = facts.floors
    asked = []
    if floors.min_accuracy is not None:
        asked.append(f"an accuracy of at least {100 * floors.min_accuracy:g} %")
    if floors.max_loss_points is not None:
        asked.append(f"a loss of at most {floors.max_loss_points:g} points")
    if not asked:
        return "No floor of utility was set for this release."
    return f"The release had to show {' and '.join(asked)}."


def _risks(facts: Predicate) -> Iterator[str]:
    yield f"- {category(facts.scheme)}"
    for note in facts.scheme.declaration.risk_notes:
        yield f"- {plain(note)}"
    yield "- The label of each image is published, and narrows down whose image it is."
    yield (
        "- What is published cannot be taken back: a stronger attack that is found later finds "
        "these images as they are."
    )


def _prohibited(facts: Predicate) -> Iterator[str]:
    yield "- Restoring images, recognising anybody, or telling whose image one is."
    yield "- Joining it with other releases or other data image by image."
    yield "- Decisions about the persons behind the images."
    yield "- Treating it as anonymous data."
    if facts.receiver == "outside_trainer":
        yield "- Passing it on: the verdict holds for the receiver named above and for nobody else."


def _verify() -> Iterator[str]:
    yield (
        "`statement.dsse.json` lists the SHA-256 of every file here and is signed by the owner. "
        "Get the owner's public key by a way that you trust; `public-key.txt` beside the data "
        "shows which one it should be and proves nothing by itself. Then, with Veilset installed:"
    )
    yield ""
    yield from _fenced("sh", ["veilset verify . --public-key owner.public"])
    yield ""
    yield (
        "It needs nothing but this folder and that key. The statement is an in-toto statement in a "
        "DSSE envelope signed by Ed25519, which other tools read as well."
    )


def _load(facts: Predicate) -> Iterator[str]:
    shape = ", ".join(map(str, facts.sets[0].shape))
    yield (
        "In this folder, once it is verified. Pixels are bytes in rows, then columns, then "
        "channels; a label is the number of its class. Other splits have their name in place of "
        "`train`."
    )
    for title, lines in snippets(shape).items():
        yield ""
        yield f"With {title}:"
        yield ""
        yield from _fenced("python", lines)


def snippets(shape: str) -> Mapping[str, tuple[str, str, str]]:
    """Three lines each that leave `images`, (N, H, W, C) or (N, C, H, W) for torch, and `labels`.

    Args:
        shape: Height, width and channels, with commas.
    """
    pixels = f"numpy.uint8).reshape(-1, {shape})"
    return {
        "`datasets`": (
            "import datasets, numpy",
            'train = datasets.load_dataset("arrow", data_files="*/train-*.arrow", split="train")',
            "images, labels = numpy.frombuffer("
            f'b"".join(train["image"]), {pixels}, numpy.array(train["label"])',
        ),
        "pandas": (
            "import pandas, pathlib, numpy",
            "train = pandas.concat(map(pandas.read_feather, "
            'sorted(pathlib.Path().glob("*/train-*.arrow"))))',
            "images, labels = numpy.frombuffer("
            f'b"".join(train["image"]), {pixels}, train["label"].to_numpy()',
        ),
        "torch": (
            "import pandas, pathlib, torch",
            "train = pandas.concat(map(pandas.read_feather, "
            'sorted(pathlib.Path().glob("*/train-*.arrow"))))',
            "images, labels = torch.frombuffer("
            f'bytearray().join(train["image"]), dtype=torch.uint8).reshape(-1, {shape})'
            '.permute(0, 3, 1, 2), torch.tensor(train["label"].to_numpy())',
        ),
    }


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"| {head[0]} | {head[1]} |"
    yield "|---|---|"
    for name, value in rows:
        yield f"| {name} | {value} |"


def _fenced(kind: str, lines: Iterable[str]) -> Iterator[str]:
    """A code block whose fence is longer than any in it."""
    body = list(lines) or [NONE]
    longest = max((len(run) for line in body for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}{kind}"
    yield from body
    yield fence


__all__ = ["Terms", "category", "datasheet", "plain", "snippets"]
