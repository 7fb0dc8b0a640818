"""Checks of an ingested drop with Great Expectations: on the table of its images, never on pixels.

Every rule says what it expects, how bad it is if that fails (critical stops the pipeline, a warning
is reported), and which control it serves. The evidence is written three times: `results.json` and
`verdict.json` for machines, and Great Expectations' own Data Docs for people. All of it has the
same bytes for the same table, and nothing of it loads anything from a network.

Source: ours; the controls are those of the EU AI Act, Article 10, and of WP29 Opinion 05/2014.
"""

import datetime
import json
import logging
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
from pydantic import Field

from veilset.drops.drift import DriftParams
from veilset.errors import CheckError
from veilset.files import staged_folder, write_json
from veilset.params import Params
from veilset.quiet import quiet

Severity = Literal["critical", "warning"]
Table = Literal["images", "all_rows", "classes", "totals", "drift"]

_TABLES: Final[tuple[Table, ...]] = ("all_rows", "images", "classes", "totals", "drift")
KEPT_ROLES: Final = ("train", "validation", "test", "auxiliary", "gallery")
REFUSED_ROLES: Final = ("duplicate", "quarantined")
COLUMNS: Final = (
    "id", "name", "label", "class_name", "group", "role", "width", "height", "mode",
    "duplicate_of", "near_duplicate_of", "drop", "brightness", "reason",
)  # fmt: skip

_QUALITY: Final = "EU AI Act Art. 10(3): relevant, representative, free of errors"
_GOVERNANCE: Final = "EU AI Act Art. 10(2): data governance"
_BIAS: Final = "EU AI Act Art. 10(2)(f): possible biases"
_LEAKAGE: Final = "sound evaluation: no image on both sides of a split"
_LINKAGE: Final = "WP29 Opinion 05/2014: linkability, attacker's data disjoint from the released"
_EPOCH: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)  # noqa: UP017


class CheckParams(Params):
    """The limits of the checks.

    Attributes:
        min_train_per_class: Fewer training images of any class is critical.
        min_images: Fewer kept images in the drop is critical.
        max_quarantine_rate: A larger share of quarantined rows is critical.
        max_duplicate_share: A larger share of exact duplicates (removed by ingest) is a warning.
        max_near_duplicate_share: A larger share of kept images with a near duplicate in another
            role is a warning.
        max_imbalance: Training images of the largest class over those of the smallest; more is a
            warning.
        min_side: Smallest original side in pixels; less is critical.
        max_side: Largest original side in pixels; more is critical.
        min_brightness: Mean grey level below which an image counts as black.
        max_brightness: Mean grey level above which an image counts as white.
        max_odd_brightness_share: A larger share of such images is a warning.
        required_roles: Each of these without an image is critical.
        drift: By how much a new drop may differ from earlier ones before a person decides.
    """

    min_train_per_class: int = Field(default=2, ge=1)
    min_images: int = Field(default=1, ge=1)
    max_quarantine_rate: float = Field(default=0.05, ge=0, le=1)
    max_duplicate_share: float = Field(default=0.1, ge=0, le=1)
    max_near_duplicate_share: float = Field(default=0.0, ge=0, le=1)
    max_imbalance: float = Field(default=10.0, ge=1)
    min_side: int = Field(default=8, ge=1)
    max_side: int = Field(default=16384, ge=1)
    min_brightness: float = Field(default=2.0, ge=0, le=255)
    max_brightness: float = Field(default=253.0, ge=0, le=255)
    max_odd_brightness_share: float = Field(default=0.01, ge=0, le=1)
    required_roles: tuple[str, ...] = ("train",)
    drift: DriftParams = DriftParams()


@dataclass(frozen=True)
class Rule:
    """One expectation on one table.

    Attributes:
        name: Ours, e.g. `quarantine_rate`; unique.
        table: Which table it is about.
        expectation: The name of the Great Expectations class.
        column: The column it reads.
        severity: What its failure means.
        control: What it serves.
        arguments: What the expectation is given beyond the column.
        words: What is expected, in words, with the limit.
        detail: What there is to say if it fails, beyond the observed value.
    """

    name: str
    table: Table
    expectation: str
    column: str
    severity: Severity
    control: str
    arguments: Mapping[str, Any]
    words: str
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """The result of one rule.

    Attributes:
        rule: Its name.
        expectation: Great Expectations' name for it, in snake case.
        table: Which table it was about.
        column: The column it read.
        severity: What a failure means.
        control: What it serves.
        success: Whether the expectation held.
        observed: The observed value; for rules on single rows, how many rows break it.
        rows: Rows that were looked at, or None for a rule on a column as a whole.
        words: One sentence with the observed value and the limit.
    """

    rule: str
    expectation: str
    table: str
    column: str
    severity: Severity
    control: str
    success: bool
    observed: float | int | str | None
    rows: int | None
    words: str


@dataclass(frozen=True)
class CheckResult:
    """All findings of one drop.

    Attributes:
        findings: In the order of the rules.
        output: The folder with the evidence.
    """

    findings: tuple[Finding, ...]
    output: Path = field(compare=False)

    @property
    def critical_failed(self) -> tuple[Finding, ...]:
        """Findings that stop the pipeline."""
        return tuple(f for f in self.findings if not f.success and f.severity == "critical")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that are only reported."""
        return tuple(f for f in self.findings if not f.success and f.severity == "warning")


def check_index(
    frame: pd.DataFrame, classes: Sequence[str], expectations: CheckParams, output: Path
) -> CheckResult:
    """Checks the index table of a drop and writes the evidence.

    Args:
        frame: One row a source image, with the columns `COLUMNS` (the ingest's `index.parquet`).
        classes: The label map: class names by label.
        expectations: The limits.
        output: The folder to write: `results.json`, `verdict.json`, `data_docs/index.html`. It is
            replaced as a whole; nothing else is written anywhere.

    Returns:
        The findings; failing ones do not raise (see `raise_if_critical`).

    Raises:
        CheckError: The table has no rows or lacks a column.
        BusyError: Another run writes the same folder.
    """
    _require(frame)
    with staged_folder(output, plan="checks") as staging:
        _clear(staging)
        findings = find(frame, classes, expectations, staging / "data_docs")
        result = CheckResult(findings=findings, output=output)
        write_json(staging / "results.json", _as_json(result))
        write_json(staging / "verdict.json", verdict(result))
    return result


def find(
    frame: pd.DataFrame, classes: Sequence[str], expectations: CheckParams, docs: Path | None = None
) -> tuple[Finding, ...]:
    """Runs all rules on the index table of a drop.

    Args:
        frame: As for `check_index`.
        classes: Class names by label.
        expectations: The limits.
        docs: The folder for the Data Docs; by default none are written.

    Returns:
        One finding a rule, in the order of `make_rules`.

    Raises:
        CheckError: The table has no rows or lacks a column, or a column has another type.
    """
    _require(frame)
    tables = make_tables(frame, classes)
    with _quiet_gx():
        return _validate(tables, make_rules(tables, classes, expectations), docs)


def verdict(result: CheckResult) -> dict[str, list[str]]:
    """What `verdict.json` holds: names of failed rules by severity."""
    return {
        "critical_failed": [finding.rule for finding in result.critical_failed],
        "warnings": [finding.rule for finding in result.warnings],
    }


def raise_if_critical(result: CheckResult) -> None:
    """Stops the pipeline if a critical rule failed.

    Raises:
        CheckError: One sentence with rule, observed value and limit of the first, and how many
            more failed.
    """
    failed = result.critical_failed
    if not failed:
        return
    more = f" ({len(failed) - 1} more critical checks failed)" if len(failed) > 1 else ""
    raise CheckError(
        f"The check {failed[0].rule} failed: {failed[0].words}{more}; see {result.output}."
    )


# Tables.


def make_tables(frame: pd.DataFrame, classes: Sequence[str]) -> dict[Table, pd.DataFrame]:
    """The tables that the rules are about.

    Args:
        frame: The index table.
        classes: Class names by label.

    Returns:
        `all_rows`: every source image; `images`: the kept ones, with `label_agrees`; `classes`: a
        row a class with its images by role; `totals`: one row with shares over the whole drop.
    """
    rows = frame.copy()
    rows["has_reason"] = (rows["role"] != "quarantined") | rows["reason"].notna()
    kept = rows[rows["role"].isin(KEPT_ROLES)].copy()
    names = dict(enumerate(classes))
    kept["label_agrees"] = kept["label"].map(names) == kept["class_name"]
    per_class = _per_class(kept, classes)
    return {
        "images": kept,
        "all_rows": rows,
        "classes": per_class,
        "totals": _totals(rows, kept, per_class),
    }


def _per_class(kept: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    counts = pd.crosstab(kept["label"], kept["role"])
    counts = counts.reindex(index=range(len(classes)), columns=list(KEPT_ROLES), fill_value=0)
    counts = counts.reset_index(drop=True).astype("int64")
    counts.insert(0, "class_name", list(classes))
    counts.columns.name = None
    return counts


def _totals(rows: pd.DataFrame, kept: pd.DataFrame, per_class: pd.DataFrame) -> pd.DataFrame:
    roles = {f"rows_{role}": int((kept["role"] == role).sum()) for role in KEPT_ROLES}
    train = per_class["train"]
    smallest = int(train.min()) if len(train) else 0
    odd = {
        "quarantine_rate": _share(rows["role"] == "quarantined"),
        "duplicate_share": _share(rows["role"] == "duplicate"),
        "imbalance": float(train.max()) / smallest if smallest else math.inf,
        "exact_across_roles": _exact_across(kept),
        "near_across_share": _share(_near_across(kept)),
        "groups_shared_with_attacker": _shared_groups(kept),
        "rows_kept": len(kept),
    }
    return pd.DataFrame([roles | odd])


def _share(mask: "pd.Series[bool]") -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _exact_across(kept: pd.DataFrame) -> int:
    """How many ids, which are hashes of the pixels, are kept in more than one role."""
    roles = kept.dropna(subset=["id"]).groupby("id")["role"].nunique()
    return int((roles > 1).sum())


def _near_across(kept: pd.DataFrame) -> "pd.Series[bool]":
    """Which kept images nearly equal an image that is kept in another role."""
    role_of = kept.dropna(subset=["id"]).drop_duplicates("id").set_index("id")["role"]
    other = kept["near_duplicate_of"].map(role_of)
    return other.notna() & (other != kept["role"])


def _shared_groups(kept: pd.DataFrame) -> int:
    """How many groups (persons) the attacker's images share with the released ones."""
    grouped = kept[kept["group"].fillna("") != ""]
    attacker = set(grouped.loc[grouped["role"] == "auxiliary", "group"])
    released = set(grouped.loc[grouped["role"] == "train", "group"])
    return len(attacker & released)


# Rules.


def make_rules(
    tables: Mapping[Table, pd.DataFrame], classes: Sequence[str], limits: CheckParams
) -> tuple[Rule, ...]:
    """All rules, in the order of the report.

    Args:
        tables: What `make_tables` returned.
        classes: Class names by label.
        limits: The limits.
    """
    return (
        *_row_rules(classes, limits),
        *_role_rules(limits),
        *_class_rules(tables["classes"], limits),
        *_total_rules(limits),
    )


def _row_rules(classes: Sequence[str], limits: CheckParams) -> tuple[Rule, ...]:
    sides = {"min_value": limits.min_side, "max_value": limits.max_side}
    sides_words = f"between {limits.min_side} and {limits.max_side} pixels"
    labels = list(range(len(classes)))
    grey = {"min_value": limits.min_brightness, "max_value": limits.max_brightness}
    grey["mostly"] = 1 - limits.max_odd_brightness_share
    odd = f"{limits.max_odd_brightness_share:.2%}"
    return (
        Rule("id_present", "images", "ExpectColumnValuesToNotBeNull", "id", "critical",
             _GOVERNANCE, {}, "every kept image has an id"),
        Rule("id_form", "images", "ExpectColumnValuesToMatchRegex", "id", "critical",
             _GOVERNANCE, {"regex": "^[0-9a-f]{32}$"}, "every id has 32 hex characters"),
        Rule("id_unique", "images", "ExpectColumnValuesToBeUnique", "id", "critical",
             _QUALITY, {}, "every id is kept once"),
        Rule("label_known", "images", "ExpectColumnValuesToBeInSet", "label", "critical",
             _QUALITY, {"value_set": labels}, f"every label is one of 0..{len(classes) - 1}"),
        Rule("label_names_class", "images", "ExpectColumnValuesToBeInSet", "label_agrees",
             "critical", _QUALITY, {"value_set": [True]},
             "every label and class name agree with the label map"),
        Rule("width_in_range", "images", "ExpectColumnValuesToBeBetween", "width", "critical",
             _QUALITY, sides, f"every width is {sides_words}"),
        Rule("height_in_range", "images", "ExpectColumnValuesToBeBetween", "height", "critical",
             _QUALITY, sides, f"every height is {sides_words}"),
        Rule("brightness_sane", "images", "ExpectColumnValuesToBeBetween", "brightness", "warning",
             _QUALITY, grey, f"at most {odd} of the images are black or white"),
    )  # fmt: skip


def _role_rules(limits: CheckParams) -> tuple[Rule, ...]:
    known = list(KEPT_ROLES + REFUSED_ROLES)
    required = tuple(
        Rule(f"role_{role}_present", "totals", "ExpectColumnValuesToBeBetween", f"rows_{role}",
             "critical", _GOVERNANCE, {"min_value": 1}, f"the role {role} has images")
        for role in limits.required_roles
    )  # fmt: skip
    return (
        Rule("role_known", "all_rows", "ExpectColumnValuesToBeInSet", "role", "critical",
             _GOVERNANCE, {"value_set": known}, "every row has a known role"),
        Rule("refusal_has_reason", "all_rows", "ExpectColumnValuesToBeInSet", "has_reason",
             "critical", _GOVERNANCE, {"value_set": [True]},
             "every quarantined row says why"),
        Rule("images_kept", "totals", "ExpectColumnMinToBeBetween", "rows_kept", "critical",
             _QUALITY, {"min_value": limits.min_images},
             f"at least {limits.min_images} images are kept"),
        *required,
    )  # fmt: skip


def _class_rules(per_class: pd.DataFrame, limits: CheckParams) -> tuple[Rule, ...]:
    least = limits.min_train_per_class
    poor = per_class.loc[per_class["train"] < least, "class_name"].tolist()
    return (
        Rule("train_images_per_class", "classes", "ExpectColumnMinToBeBetween", "train",
             "critical", _QUALITY, {"min_value": least},
             f"the smallest class has at least {least} training images", _some(poor)),
        Rule("class_imbalance", "totals", "ExpectColumnMaxToBeBetween", "imbalance", "warning",
             _BIAS, {"max_value": limits.max_imbalance},
             f"the largest class has at most {limits.max_imbalance:g} times the training images "
             "of the smallest"),
    )  # fmt: skip


def _total_rules(limits: CheckParams) -> tuple[Rule, ...]:
    def share(name: str, column: str, severity: Severity, control: str, most: float,
              words: str) -> Rule:  # fmt: skip
        return Rule(name, "totals", "ExpectColumnMaxToBeBetween", column, severity, control,
                    {"max_value": most}, words)  # fmt: skip

    quarantined = f"at most {limits.max_quarantine_rate:.2%} of the rows are quarantined"
    duplicates = f"at most {limits.max_duplicate_share:.2%} of the rows are exact duplicates"
    near = (
        f"at most {limits.max_near_duplicate_share:.2%} of the kept images nearly equal one in "
        "another role"
    )
    return (
        share("quarantine_rate", "quarantine_rate", "critical", _QUALITY,
              limits.max_quarantine_rate, quarantined),
        share("exact_duplicates_across_roles", "exact_across_roles", "critical", _LEAKAGE, 0,
              "no image is kept in two roles"),
        share("near_duplicates_across_roles", "near_across_share", "warning", _LEAKAGE,
              limits.max_near_duplicate_share, near),
        share("duplicate_share", "duplicate_share", "warning", _QUALITY,
              limits.max_duplicate_share, duplicates),
        share("groups_shared_with_attacker", "groups_shared_with_attacker", "warning", _LINKAGE,
              0, "no group is both in train and in auxiliary (otherwise person linkage is "
              "closed-set)"),
    )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(str(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"too few in {shown}{more}" if names else ""


# Great Expectations.


def _validate(
    tables: Mapping[Table, pd.DataFrame], rules: Sequence[Rule], docs: Path | None
) -> tuple[Finding, ...]:
    """Runs all rules in one ephemeral context, with Data Docs below `docs`."""
    import great_expectations as gx  # noqa: PLC0415 - many seconds to import

    context = _context(gx)
    source = context.data_sources.add_pandas("index")
    findings: dict[str, Finding] = {}
    for table in (name for name in _TABLES if name in tables):
        chosen = [rule for rule in rules if rule.table == table]
        outcome = _run_table(gx, context, source, table, tables[table], chosen)
        findings |= {rule.name: _finding(rule, outcome[rule.name]) for rule in chosen}
    if docs is not None:
        context.add_data_docs_site("evidence", _site(docs))
        context.build_data_docs(site_names=["evidence"])
        tidy_docs(docs)
    return tuple(findings[rule.name] for rule in rules)


def _context(gx: Any) -> Any:
    """A context in memory, without the Data Docs site that it makes in the temporary folder."""
    context = gx.get_context(mode="ephemeral")
    for name, site in dict(context.list_data_docs_sites()).items():
        shutil.rmtree(site["store_backend"]["base_directory"], ignore_errors=True)
        context.delete_data_docs_site(name)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context


def _site(docs: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(docs.absolute()),
        },
    }


def _run_table(
    gx: Any, context: Any, source: Any, table: Table, frame: pd.DataFrame, rules: Sequence[Rule]
) -> dict[str, Any]:
    """Great Expectations' result by rule name."""
    from great_expectations.core.run_identifier import RunIdentifier  # noqa: PLC0415

    batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe(table)
    suite = context.suites.add(
        gx.ExpectationSuite(name=table, expectations=[_expectation(gx, rule) for rule in rules])
    )
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=table, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=table,
            validation_definitions=[definition],
            # No value of any row is kept: ids and source names must not leave with the docs.
            result_format={"result_format": "BASIC", "partial_unexpected_count": 0},
        )
    )
    result = checkpoint.run(
        batch_parameters={"dataframe": frame},
        # A fixed run keeps the evidence's bytes the same for the same table.
        run_id=RunIdentifier(run_name="check", run_time=_EPOCH),
    )
    (validation,) = result.run_results.values()
    return {one.expectation_config.meta["rule"]: one for one in validation.results}


def _expectation(gx: Any, rule: Rule) -> Any:
    make = getattr(gx.expectations, rule.expectation)
    meta = {"rule": rule.name, "control": rule.control}
    return make(column=rule.column, severity=rule.severity, meta=meta,
                notes=rule.words, **rule.arguments)  # fmt: skip


def _finding(rule: Rule, result: Any) -> Finding:
    if result.exception_info.get("raised_exception", False) or not result.result:
        raise CheckError(
            f"The check {rule.name} cannot run on the column {rule.column} of the index: see that "
            f"its values are {_expected_type(rule)}, and ingest again."
        )
    observed, rows = _observed(result.result)
    return Finding(
        rule=rule.name,
        expectation=result.expectation_config.type,
        table=rule.table,
        column=rule.column,
        severity=rule.severity,
        control=rule.control,
        success=bool(result.success),
        observed=observed,
        rows=rows,
        words=_words(rule, observed, rows, bool(result.success)),
    )


def _expected_type(rule: Rule) -> str:
    return "numbers" if "Between" in rule.expectation else "text or whole numbers"


def _observed(result: Mapping[str, Any]) -> tuple[float | int | None, int | None]:
    """The observed value, and the number of rows for a rule on rows."""
    if "unexpected_count" in result:
        return int(result["unexpected_count"]), int(result["element_count"])
    value = result.get("observed_value")
    if value is None or not math.isfinite(value):
        return None, None
    number = float(value)
    return (int(number) if number.is_integer() else round(number, 6)), None


def _words(rule: Rule, observed: float | int | None, rows: int | None, success: bool) -> str:
    if rows is not None:
        seen = f"{observed} of {rows} rows break it"
    elif observed is None:
        seen = "there is no finite value"
    else:
        seen = f"observed {observed:g}" if isinstance(observed, float) else f"observed {observed}"
    detail = f", {rule.detail}" if rule.detail and not success else ""
    return f"expected that {rule.words}; {seen}{detail}"


# Evidence.


def _as_json(result: CheckResult) -> dict[str, Any]:
    return {
        "schema": 1,
        "success": not result.critical_failed,
        "results": [dict(vars(finding)) for finding in result.findings],
    }


_REMOTE: Final = re.compile(
    r"<script[^>]*\bsrc=\"?https?://[^>]*>\s*</script>"
    r"|<link[^>]*\bhref=\"?https?://[^>]*>"
    r"|<img[^>]*\bsrc=\"?https?://[^>]*>",
    re.IGNORECASE | re.DOTALL,
)
_REMOTE_PICTURE: Final = re.compile(r"url\(['\"]?https?://[^)]*\)", re.IGNORECASE)
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME: Final = re.compile(r"\b\d{8}T\d{6}\.\d{6}Z")
_STYLE: Final = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:0 auto;padding:1em}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #ccc;padding:.3em .6em}
th{text-align:left}.navbar,.modal,.cooltip .top,footer{display:none!important}
.failed,.text-danger{color:#b00020}.text-success{color:#1b5e20}
</style></head>"""


def tidy_docs(docs: Path) -> None:
    """Makes Data Docs a page that loads nothing, with the same bytes for the same results.

    As generated, every page asks a dozen foreign hosts for scripts, styles and a time-stamped
    logo, carries megabytes of tutorial pictures and fonts, and has random ids.

    Args:
        docs: The folder that Great Expectations wrote.
    """
    shutil.rmtree(docs / "static", ignore_errors=True)
    for page in sorted(docs.rglob("*.html")):
        page.write_text(_tidy_page(page.read_text(encoding="utf-8")), encoding="utf-8")


def _tidy_page(text: str) -> str:
    text = _REMOTE_PICTURE.sub("none", _REMOTE.sub("", text)).replace("</head>", _STYLE, 1)
    numbers: dict[str, str] = {}
    for found in _UUID.findall(text):
        numbers.setdefault(found, f"{len(numbers):08x}-0000-0000-0000-000000000000")
    text = _UUID.sub(lambda match: numbers[match.group()], text)
    return _TIME.sub(_EPOCH.strftime("%Y%m%dT%H%M%S.%fZ"), text)


def read_verdict(output: Path) -> dict[str, list[str]]:
    """Reads back `verdict.json` of a checked drop.

    Raises:
        CheckError: It is missing or not what `check_index` writes.
    """
    path = output / "verdict.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: list(values[name]) for name in ("critical_failed", "warnings")}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckError(f"{path} is missing or damaged: run the stage `check` again.") from None


def _require(frame: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise CheckError(
            f"The index has no column {', '.join(missing)}: it was written by another version, so "
            f"ingest again."
        )
    if frame.empty:
        raise CheckError("The index has no rows: the drop is empty, so add images or remove it.")


def _clear(folder: Path) -> None:
    """Leftovers of a killed run go; the folder's bookkeeping (plain files) stays."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


@contextmanager
def _quiet_gx() -> Iterator[None]:
    """Telemetry off, progress bars and deprecation chatter away, for the block only."""
    quiet()
    logger = logging.getLogger("great_expectations")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
