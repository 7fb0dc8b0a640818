"""Croissant metadata of a release: what data catalogues and loaders read.

Every shard is a file with its SHA-256, and every split a record set of `id`, `label`, `image` and
what else is published. Arrow files are no format that mlcroissant loads (version 1.1.1 tells CSV,
JSON, Parquet and pictures), so its description of them is checked and its records cannot be drawn;
where the release has the same rows as Parquet, the record sets are of those, and can.

Source: ours; format: MLCommons Croissant 1.0.
"""

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from veilset.errors import SettingsError
from veilset.release.datasheet import Terms, category
from veilset.release.statement import Predicate

CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.0"

ARROW: Final = "application/vnd.apache.arrow.file"
PARQUET: Final = "application/x-parquet"

_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs",
    "column": "cr:column", "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract",
    "field": "cr:field", "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key",
    "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}  # fmt: skip
_KINDS: Final = {".arrow": ARROW, ".parquet": PARQUET}


def croissant(
    facts: Predicate, files: Mapping[str, tuple[str, int]], terms: Terms
) -> dict[str, Any]:
    """The metadata of a release as JSON-LD.

    Args:
        facts: What the statement says.
        files: SHA-256 and length of each shard, and of each Parquet file if there are any, by its
            place in the release.
        terms: What the owner adds.
    """
    suffix = ".parquet" if any(name.endswith(".parquet") for name in files) else ".arrow"
    splits = sorted({split for one in facts.sets for split in one.splits})
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": facts.dataset,
        "description": _description(facts),
        "version": f"1.0.0+{facts.root[:16]}",
        "datePublished": facts.released.isoformat(),
        "license": terms.licence,
        "creator": {"@type": "sc:Organization", "name": terms.publisher},
        "citeAs": f"{terms.publisher}: {facts.dataset}, root {facts.root}.",
        "isLiveDataset": False,
        "rai:dataLimitations": " ".join(facts.scheme.declaration.risk_notes),
        "rai:personalSensitiveInformation": category(facts.scheme),
        "distribution": [
            *(_file(name, *files[name]) for name in sorted(files)),
            *(_file_set(split, suffix) for split in splits),
        ],
        "recordSet": [_record_set(split, facts) for split in splits],
    }


def croissant_faults(path: Path) -> tuple[str, ...]:
    """What mlcroissant finds wrong with a `croissant.json`; none where it is valid.

    Args:
        path: The file; nothing beside it is read and nothing is fetched.

    Raises:
        SettingsError: mlcroissant is not installed.
    """
    try:
        # By name: it is an extra, takes seconds to import, and has no types.
        mlcroissant: Any = import_module("mlcroissant")
    except ImportError:
        raise SettingsError(
            "Croissant metadata is checked by mlcroissant, which is not installed here: install it "
            "(`pip install mlcroissant`)."
        ) from None
    try:
        found = mlcroissant.Dataset(jsonld=str(path)).metadata.ctx.issues
    except (mlcroissant.ValidationError, ValueError, json.JSONDecodeError) as error:
        return tuple(line.strip(" -") for line in str(error).splitlines() if line.strip(" -"))
    return (*sorted(found.errors), *sorted(found.warnings))


def _description(facts: Predicate) -> str:
    rows = sum(sum(one.splits.values()) for one in facts.sets)
    height, width, channels = facts.sets[0].shape
    return (
        f"{rows:,} images of {height} x {width} x {channels} in {facts.sets[0].classes} classes, "
        f"protected by {facts.scheme.title}. {category(facts.scheme)}"
    )


def _file(name: str, sha256: str, size: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name,
        "contentSize": f"{size} B", "encodingFormat": _KINDS[Path(name).suffix], "sha256": sha256,
    }  # fmt: skip


def _file_set(split: str, suffix: str) -> dict[str, Any]:
    """All shards of a split, as they lie beside the metadata."""
    return {
        "@type": "cr:FileSet", "@id": f"{split}-files", "name": f"{split}-files",
        "encodingFormat": _KINDS[suffix], "includes": f"*/{split}-*{suffix}",
    }  # fmt: skip


def _record_set(split: str, facts: Predicate) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet", "@id": split, "name": split, "key": {"@id": f"{split}/id"},
        "field": [
            {
                "@type": "cr:Field", "@id": f"{split}/{name}", "name": name, "description": words,
                "dataType": kind,
                "source": {
                    "fileSet": {"@id": f"{split}-files"}, "extract": {"column": name},
                },
            }
            for name, kind, words in _fields(facts)
        ],
    }  # fmt: skip


def _fields(facts: Predicate) -> Iterator[tuple[str, str, str]]:
    height, width, channels = facts.sets[0].shape
    yield "id", "sc:Text", "Published id, 32 hex characters; tells nothing of the original."
    yield "label", "sc:Integer", "Number of the class, from 0."
    yield (
        "image", "sc:Text",
        f"Bytes of the pixels, uint8, {height} rows of {width} pixels of {channels} channels.",
    )  # fmt: skip
    for name, kind in sorted(facts.sets[0].columns.items()):
        yield name, _data_type(kind), f"Side information, {kind}."


def _data_type(kind: str) -> str:
    """Of a column as the manifest names its type; what has axes is bytes."""
    if "[" in kind:
        return "sc:Text"
    if kind.startswith(("bool", "float")):
        return "sc:Boolean" if kind == "bool" else "sc:Float"
    return "sc:Integer"
