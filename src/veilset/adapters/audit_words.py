"""Answers of `veilset audit` in plain words: the same facts as its JSON."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from veilset.adapters.audit_facts import (
    Answer,
    AttackFacts,
    DropFacts,
    ModelFacts,
    ProtectedFacts,
    Recorded,
    ReleaseFacts,
    SampleFacts,
    UtilityFacts,
    VerdictFacts,
)
from veilset.report.words import count, listed, plain, template_title

_NOWHERE = "nowhere on record"
_DIGITS = 12


def words(answer: Answer) -> str:
    """The answer as text: what it is, each theme under its title, and what is missing."""
    return "\n".join(_lines(answer)) + "\n"


def _lines(answer: Answer) -> Iterator[str]:
    where = "in the workspace"
    if answer.commit is not None:
        where = f"at commit {answer.commit[:_DIGITS]}"
    yield f"{answer.subject}."
    if answer.question not in ("commit", "date"):
        yield f"Looked at as it is {where}."
    dated = answer.question == "date"
    title = "Raw drops that came or were decided about" if dated else "Raw drops behind it"
    yield from _section(title, map(_drop, answer.drops), "none on record")
    if dated:
        yield from _happened(answer)
        return
    yield from _section("Protected sets", map(_protected, answer.protected), "none")
    pinned = [f"{name} {version}" for name, version in answer.packages.items()]
    yield from _section("Pinned packages", [[", ".join(pinned)]] if pinned else [], _NOWHERE)
    yield from _section("Attacks and verdicts", map(_verdict, answer.verdicts), "none")
    yield from _section("Models that learnt from it", map(_model, answer.models), "none")
    yield from _happened(answer)


def _happened(answer: Answer) -> Iterator[str]:
    """Releases, changes, samples, addresses and gaps."""
    yield from _section(
        "Releases", map(_release, answer.releases), "none made, refused or withdrawn"
    )
    if answer.changes or answer.question in ("scheme", "drop", "commit", "date"):
        changes = (
            [f"{_day(one.at)} by {one.by}, commit {one.commit[:_DIGITS]}: {listed([*one.stages])}"]
            for one in answer.changes
        )
        yield from _section("Put on record", changes, "nothing")
    if answer.samples is not None:
        yield from _section("Made again now", map(_sample, answer.samples), "nothing to make again")
    if answer.runs:
        runs = ([f"{one.stage}: run {one.run}, {one.address}"] for one in answer.runs)
        yield from _section("In MLflow (local pages open by `make ui`)", runs, "")
    yield ""
    if answer.complete:
        yield "The record is complete."
        return
    yield f"THE RECORD IS INCOMPLETE: {count(len(answer.missing), 'thing')} missing or wrong."
    for sentence in answer.missing:
        yield f"- {sentence}"


def _section(title: str, items: Iterable[list[str]], none: str) -> Iterator[str]:
    """A title with an entry an item, its first line and further ones; or that there is none."""
    yield ""
    shown = False
    for item in items:
        if not shown:
            yield f"{title}:"
        shown = True
        yield f"- {item[0]}"
        yield from (f"    {line}" for line in item[1:])
    if not shown:
        yield f"{title}: {none}."


def _drop(drop: DropFacts) -> list[str]:
    lines = [
        f"{drop.name}: {drop.state or 'in no record of drops'}"
        + (f", source {drop.source}" if drop.source else ""),
        f"licence: {drop.licence or _NOWHERE}",
        f"consent: {drop.consent or _NOWHERE}",
    ]
    if drop.by is not None and drop.at is not None:
        lines.append(f"handed in by {drop.by} on {_day(drop.at)}")
    lines += [f"decision: {one}" for one in drop.decisions]
    lines.append(f"images: {_counts(drop.images)}")
    if drop.failed is None:
        lines.append(f"checks: {_NOWHERE}")
    else:
        failed = f"critical ones failed: {plain(drop.failed)}" if drop.failed else "critical passed"
        lines.append(f"checks: {failed}; warnings: {plain(drop.warnings)}")
    return lines


def _protected(one: ProtectedFacts) -> list[str]:
    lines = [f"{one.scheme}/{one.drop}, DVC digest {one.digest}"]
    if one.root is not None:
        lines.append(f"names: {', '.join(one.names)}; SHA-256 root {one.root}")
        lines.append(f"transformation: {one.title} ({one.kind}), version {one.version}")
        lines.append(f"parameters: {plain(one.parameters)}")
        undone = {True: "undone with the key (pseudonymisation)", False: "one-way", None: "unknown"}
        lines.append(
            f"declared: {undone[one.reversible]}; {one.guarantee or 'no formal guarantee'}"
        )
        lines.append(f"images: {_counts(one.images)}")
        demo = ", the public demo key, which protects nothing" if one.demo_key else ""
        lines.append(f"key: {one.key or 'none'}{demo}")
    if one.learns:
        lines.append(f"learnt from plain images of: {plain(one.fitted_on)}")
    return [*lines, _recorded(one.recorded)]


def _recorded(one: Recorded) -> str:
    if one.commit is None or one.at is None:
        return "recorded: not in git, so by whom and when is not known"
    code = {
        True: "with the code that ran",
        False: "WITHOUT the code that ran",
        None: "the code that ran is not recorded",
    }[one.code]
    return f"recorded: by {one.by} on {_day(one.at)}, commit {one.commit[:_DIGITS]}, {code}"


def _verdict(one: VerdictFacts) -> list[str]:
    stale = f"; STALE: {one.stale}" if one.stale else ""
    return [
        f"{one.of}, {template_title(one.receiver).lower()}: {one.verdict.upper()} (attack suite "
        f"{one.suite}{stale}). {one.words}",
        *map(_attack, one.attacks),
    ]


def _attack(one: AttackFacts) -> str:
    figures = "no figure"
    if one.value is not None:
        figures = f"{one.value:.3f}"
        if one.low is not None and one.high is not None:
            figures += f" ({one.low:.3f} to {one.high:.3f})"
    limit = "no threshold" if one.threshold is None else f"threshold {one.threshold:g}"
    aside = "" if one.counts else "; does not bear on the verdict"
    reason = f"; {one.reason}" if one.reason else ""
    return f"{one.attack} ({plain(one.risk)}): {figures}, {limit}: {one.verdict}{aside}{reason}"


def _model(one: ModelFacts) -> list[str]:
    learnt = ", ".join(one.sets) or "sets that are not known"
    lines = [f"{one.name}: {one.architecture}, learnt from {learnt}"]
    trained = [
        count(one.images, "training image") if one.images is not None else "",
        f"on {one.device}" if one.device else "",
        f"with torch {one.torch}" if one.torch else "",
    ]
    if one.validation_accuracy is not None:
        trained.append(f"validation accuracy {_share(one.validation_accuracy)}")
    lines.append(f"trained: {', '.join(filter(None, trained)) or 'how is not known'}")
    lines += map(_utility, one.utility)
    return [*lines, _recorded(one.recorded)]


def _utility(one: UtilityFacts) -> str:
    text = f"accuracy on {one.test_on} test images: {_share(one.accuracy)}"
    if one.low is not None and one.high is not None:
        text += f" ({_share(one.low)} to {_share(one.high)})"
    text += f", {count(one.runs, 'seed')}"
    if one.loss is not None:
        text += f"; loss against plain ({_share(one.baseline)}): {one.loss:.1f} points"
        if one.loss_low is not None and one.loss_high is not None:
            text += f" ({one.loss_low:.1f} to {one.loss_high:.1f})"
    return text if one.declared else f"{text}; not what the scheme is meant for"


def _release(one: ReleaseFacts) -> list[str]:
    who = f" by {one.by}" if one.by else ""
    what = f"{one.scheme} for {template_title(one.receiver).lower()}"
    lines = [f"{one.event} on {_day(one.at)}{who}: {what}" + (f", {one.name}" if one.name else "")]
    if one.to:
        lines.append(f"put into: {one.to}")
    if one.commit:
        lines.append(f"from commit {one.commit[:_DIGITS]}")
    if one.this_version is not None:
        lines.append("these very images" if one.this_version else "another version of the images")
    if one.waived_by:
        lines.append(
            f"released in spite of the verdict: {one.waived_by} on {one.waived_on}, because: "
            f"{one.waived_because}"
        )
    return lines + [f"reason: {reason}" for reason in one.reasons]


def _sample(one: SampleFacts) -> list[str]:
    if one.obstacle is not None:
        return [f"{one.set}: not possible. {one.obstacle}"]
    same = f"{one.equal} of {count(one.images, 'sampled image')} came out bit for bit as stored"
    return [f"{one.set}: {same}" + (f" ({one.remark})" if one.remark else "")]


def _counts(images: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in images.items()) or "not known"


def _share(value: float | None) -> str:
    return "not available" if value is None else f"{100 * value:.1f} %"


def _day(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
