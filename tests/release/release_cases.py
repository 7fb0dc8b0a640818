"""A small project of named persons from raw files to protected sets, as a release finds it."""

import csv
import hashlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from veilset.attacks.base import NO_PERSONS, SUITE_VERSION
from veilset.data.ingest import IngestParams, ingest
from veilset.data.shards import ImageSet
from veilset.data.sources.registry import open_source
from veilset.files import read_table, sha256_file
from veilset.keys import Key
from veilset.release.card import leakage_card
from veilset.release.datasheet import Terms
from veilset.release.gate import GateParams, Results, verdicts_of
from veilset.release.ledger import Spent
from veilset.release.readiness import Standing, release_facts
from veilset.release.statement import CheckFacts, Predicate
from veilset.report.model import AttackFile, Card, EvaluationFile
from veilset.schemes.base import Scheme
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import make_scheme

KEY, IDS_KEY = Key(bytes(range(32))), Key(bytes(range(1, 33)))
DAY = date(2026, 3, 1)
TERMS = Terms(licence="For research under contract 12 only.", publisher="Example Clinic")
SIDE = 16
RUN = {"applicable": True, "chance": 0.01, "targets": 500, "gallery": 100, "status": "ok",
       "metric_words": "rank-1", "size": "full", "seed": 7, "seconds": 3.0}  # fmt: skip
INVERSE = RUN | {
    "attack": "learned_inverse", "title": "Learned inverse", "risk": "singling_out",
    "attacker": "outside_trainer", "value": 0.01, "low": 0.0, "high": 0.03,
    "words": "1 of 100 is restored.", "details": {"file": "ana-maria-0.png"},
}  # fmt: skip
LINKAGE = RUN | {
    "attack": "linkage", "title": "Linkage", "risk": "linkability", "attacker": "public_release",
    "value": 0.5, "low": 0.4, "high": 0.6, "words": "50 of 100 are linked.",
}  # fmt: skip
RECOGNITION = {
    "attack": "recognition", "title": "Recognition", "risk": "singling_out",
    "attacker": "outside_trainer", "applicable": False, "reason": NO_PERSONS,
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A project's sets, and the words that nothing published may hold."""

    sets: dict[str, ImageSet]
    scheme: Scheme[Any]
    private: frozenset[str]

    @property
    def standing(self) -> Standing:
        """All of it in order: the outside trainer's verdict passes."""
        return Standing(
            scheme="scheme_in_params", manifests={n: s.manifest for n, s in self.sets.items()},
            checks={name: CheckFacts(warnings=("imbalance",)) for name in self.sets},
            card=card_of(self.scheme), evaluation=evaluation(), unclean=(), uncommitted=(),
            ids_fingerprint=IDS_KEY.fingerprint,
        )  # fmt: skip

    @property
    def facts(self) -> Predicate:
        """What the statement says of it."""
        return release_facts(
            self.standing, "outside_trainer", released=DAY, spent=spent(), commit="a" * 40,
            packages={"veilset": "0.1.0", "numpy": "2.4.6"},
        )  # fmt: skip


def spent() -> Spent:
    return Spent(metric="L1 per unit of intensity", images=90, releases=2, most=12.0, least=9.0)


def evaluation(**changed: Any) -> EvaluationFile:
    row = {
        "scheme": "scheme_in_params", "model": "small_cnn", "test_on": "protected",
        "declared": True, "runs": 3, "n": 100, "accuracy": 0.9, "low": 0.85, "high": 0.94,
        "baseline_accuracy": 0.95, "loss_points": 5.0, "loss_low": 2.0, "loss_high": 8.0,
    }  # fmt: skip
    rows = [row | changed, row | {"declared": False, "low": 0.99}, row | {"scheme": "other"}]
    return EvaluationFile.model_validate({"rows": rows})


def card_of(scheme: Scheme[Any], suite: str = SUITE_VERSION, **more: Any) -> Card:
    """Its card: passes for an outside trainer, fails for a public release."""
    content = {
        "suite": suite, "scheme": "scheme_in_params", "dataset": "faces", "shape": (SIDE, SIDE, 1),
        "results": more.pop("results", [INVERSE, LINKAGE, RECOGNITION]),
    }  # fmt: skip
    params = GateParams(max_suite_age=0)
    judged = verdicts_of(Results.model_validate(content), scheme, params)
    found = AttackFile.model_validate(content)
    return Card.model_validate(leakage_card(found, judged, scheme, params, **more))


def photographs(folder: Path, seed: int, count: int = 60) -> Path:
    """PNGs of ten persons, and the table that names them."""
    rng = np.random.default_rng(seed)
    (folder / "ward-seven").mkdir(parents=True)
    table = folder / "index-of-patients.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        for index in range(count):
            name = f"ward-seven/ana-maria-{seed}-{index}.png"
            pixels = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            split = "test" if index % 3 == 2 else "train"
            label = "ill" if index // 3 % 2 else "well"
            writer.writerow([name, label, f"person-{split}-{seed}-{index % 10}", split])
    return table


def made(root: Path, scheme: Scheme[Any] | None = None, drops: int = 2, key: Key = KEY) -> Made:
    """Raw files through ingest and protection, as the stages do it."""
    scheme = scheme or make_scheme("masked_image", {}, "test")
    sets, private = {}, {str(root), "ward-seven", "index-of-patients", "patient", "ana-maria"}
    for number in range(drops):
        name = f"drop-{number}"
        table = photographs(root / "raw" / name, number)
        ingested, links = root / "ingested" / name, root / "provenance" / name
        source = open_source({"source": "table", "path": str(table)}, root)
        params = IngestParams(size=(SIDE, SIDE), channels=1, near_duplicate_threshold=None)
        ingest(source, params, IDS_KEY, name, ingested, root / "quarantine" / name)
        plain, output = ImageSet.open(ingested), root / "protected" / name
        protect_set(plain, scheme, key, output, links, dataset="faces")
        sets[name] = ImageSet.open(output)
        private |= _of_raw(root / "raw" / name) | _of_ingested(plain) | _of_links(links)
    return Made(sets, scheme, frozenset(private | {KEY.secret.hex(), IDS_KEY.secret.hex()}))


def _of_raw(folder: Path) -> set[str]:
    """Names, stems and hashes of raw files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    hashes = {hashlib.new(k, p.read_bytes()).hexdigest() for p in files for k in ("md5", "sha256")}
    return hashes | {path.name for path in files} | {path.stem for path in files}


def _of_ingested(plain: ImageSet) -> set[str]:
    """Ids, groups and digests of the ingested set."""
    found = {plain.manifest.root, sha256_file(plain.folder / "manifest.json")}
    for entry in plain.manifest.shards:
        found |= {entry.sha256, *entry.chunks}
    for split in plain.splits:
        found |= {row.tobytes().hex() for row in plain.ids(split)}
        for image in plain.images(split):
            found.add(hashlib.sha256(image.tobytes()).hexdigest())
    index = read_table(plain.folder / "index.parquet")
    return found | {str(name) for column in ("id", "name", "group") for name in index[column]}


def _of_links(folder: Path) -> set[str]:
    return {str(n) for path in folder.glob("*.parquet") for n in read_table(path)["id"]}
