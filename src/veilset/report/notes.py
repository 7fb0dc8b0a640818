"""What a reader must know before trusting the figures, drawn from the figures. Source: ours."""

from collections.abc import Iterable, Iterator

from veilset.report import words
from veilset.report.model import AttackResult, Drop, ReportInputs
from veilset.report.view import scheme_title

_MANY_TARGETS = 2000
_SMALL_SET = 5000
_SMALL_CLASS = 100


def notes(inputs: ReportInputs) -> tuple[str, ...]:
    """Sentences on small sets, few targets, closed sets and unsound attacks, most general first."""
    files = [*inputs.attacks.values(), *inputs.model_attacks.values()]
    results = [item for file in files for item in file.results if item.applicable]
    found = [*_sets(inputs.drops), *_targets(results), *_runs(results), *_status(inputs)]
    found.append(
        "A pass means that these attacks, at these sizes, did not succeed. It is no proof that no "
        "other attack can."
    )
    return tuple(found)


def zero_bound(targets: int) -> float:
    """Upper 95 % Clopper-Pearson limit of a rate after no success in `targets` trials."""
    return float(1 - 0.025 ** (1 / targets))


def _sets(drops: Iterable[Drop]) -> Iterator[str]:
    for drop in drops:
        train = drop.splits.get("train", 0)
        if train < _SMALL_SET:
            yield f"Small set: {drop.name} has {words.count(train, 'training image')}."
        fewest = _fewest(drop)
        if fewest and fewest[1] < _SMALL_CLASS:
            yield (
                f"Small classes: in {drop.name} the class {fewest[0]} has only "
                f"{words.count(fewest[1], 'training image')}."
            )
        if drop.groups_are_classes:
            yield (
                f"Closed set: in {drop.name} each person is a class of the task, so attacker and "
                "owner know the same people. Figures on persons do not carry over to strangers."
            )
        if drop.groups == 0:
            yield (
                f"No persons are recorded in {drop.name}: re-identifying a person in another "
                "photograph could not be measured. This is not a pass."
            )


def _fewest(drop: Drop) -> tuple[str, int] | None:
    train = (drop.counts or {}).get("train", {})
    return min(train.items(), key=lambda item: (item[1], item[0]), default=None)


def _targets(results: Iterable[AttackResult]) -> Iterator[str]:
    counts = [item.targets for item in results if item.targets]
    if counts and min(counts) < _MANY_TARGETS:
        low, high = min(counts), max(counts)
        span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        yield (
            f"Few targets: the attacks ran on {span} images each; a firm figure wants "
            f"{_MANY_TARGETS:,}. Even no success at all in {low:,} leaves a rate of up to "
            f"{100 * zero_bound(low):.1f} % possible."
        )


def _runs(results: Iterable[AttackResult]) -> Iterator[str]:
    rows = list(results)
    sizes = {item.size for item in rows if item.size}
    if "quick" in sizes:
        yield "Quick attacks: they were trained briefly. Longer training can only find more."
    seeds = {item.seed for item in rows if item.seed is not None}
    if len(seeds) == 1:
        yield (
            "One run: every attack ran once, with one seed. The intervals cover the choice of "
            "targets, not the luck of training."
        )


def _status(inputs: ReportInputs) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for file in (*inputs.attacks.values(), *inputs.model_attacks.values()):
        for item in file.results:
            if item.applicable and item.status in ("weak_oracle", "diverged"):
                key = (item.title or item.attack, words.STATUS[item.status])
                found.setdefault(key, []).append(scheme_title(inputs, file.scheme))
    for (title, reason), schemes in sorted(found.items()):
        yield f"{title} on {words.listed(list(dict.fromkeys(schemes)))}: {reason}."
