"""What every scheme promises, whichever it is; the registry finds them all."""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import veilset.schemes
from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes.base import ArrayPool, Declaration, Scheme
from veilset.schemes.fitted import Fitted, Lessons
from veilset.schemes.registry import SCHEMES, make_scheme, scheme_names, scheme_of_record

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
SHAPE = (16, 20, 3)
# Learning is not the matter here: one short pass of small networks.
QUICK: dict[str, dict[str, Any]] = {
    "image_to_perturbation": {
        "epochs": 1,
        "classifier_epochs": 1,
        "feature_epochs": 1,
        "least_steps": 1,
        "base": 4,
        "width": 4,
    },
    "mask_desensitization": {"epochs": 1},
}


def batch(
    count: int = 12, shape: tuple[int, int, int] = SHAPE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        (np.arange(count) % 2).astype(np.int64),
        rng.integers(0, 256, (count, 16), dtype=np.uint8),
    )


@cache
def ready(name: str, shape: tuple[int, int, int] = SHAPE) -> Scheme[Any]:
    """A scheme with its defaults, fitted on noise of a shape where it learns."""
    values = QUICK.get(name, {})
    if name == "mask_desensitization" and shape[0] * shape[1] > 1024 * 8**2:
        values = {**values, "patch_px": 16}  # it takes 1,024 patches at most
    scheme = make_scheme(name, values, "t")
    if not scheme.learns:
        return scheme
    images, labels, _ = batch(32, shape, seed=9)
    return scheme.with_fitted(scheme.fit(Lessons(images, labels, images[:8], labels[:8], 2)))


def learnt(name: str, value: float) -> Fitted:
    """Something that a scheme of that name might have learnt."""
    scheme = make_scheme(name, {}, "t")
    arrays = {"weights": np.full(3, value)}
    return Fitted(name, scheme.version, scheme.params.canonical(), arrays)


# ------------------------------------------------------------------------------ the registry


def test_every_module_with_a_schemes_name_holds_that_scheme() -> None:
    papers = {"masked_image", "visualmixer", "mask_desensitization", "image_to_perturbation",
              "pixel_block_mixing"}  # fmt: skip
    assert papers | {"plain"} <= set(scheme_names())
    assert list(SCHEMES) == list(scheme_names())
    for name in scheme_names():
        assert SCHEMES[name].name == name
        assert issubclass(SCHEMES[name], Scheme)
    assert "base" not in SCHEMES
    assert "nothing" not in SCHEMES


def test_a_new_scheme_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(SCHEMES["plain"].__module__.replace(".", "/"))
    text = (Path(veilset.schemes.__path__[0]) / f"{source.name}.py").read_text()
    (tmp_path / "negative.py").write_text(
        text.replace('name = "plain"', 'name = "negative"').replace("images.copy()", "255 - images")
    )
    (tmp_path / "mislaid.py").write_text(text)
    monkeypatch.setattr(veilset.schemes, "__path__", [*veilset.schemes.__path__, str(tmp_path)])
    images, labels, ids = batch()
    made = make_scheme("negative", {}, "here").protect(images, labels, ids, KEY)
    assert (made.images == 255 - images).all()
    with pytest.raises(TypeError, match="mislaid"):
        SCHEMES["mislaid"]
    for name in ("negative", "mislaid"):
        sys.modules.pop(f"veilset.schemes.{name}", None)


def test_an_unknown_scheme_is_named_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match=r"params.yaml: scheme.x.*'blur'.*plain"):
        make_scheme("blur", {}, "params.yaml: scheme.x")


def test_unknown_parameters_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"here\.strength is unknown"):
        make_scheme("plain", {"strength": 3}, "here")


# ------------------------------------------------------------------------------ every scheme


@pytest.mark.parametrize("name", scheme_names())
@pytest.mark.parametrize("shape", [(8, 8, 1), (13, 40, 3)])
def test_protection_is_a_pure_function(name: str, shape: tuple[int, int, int]) -> None:
    images, labels, ids = batch(shape=shape)
    given = [array.copy() for array in (images, labels, ids)]
    one = ready(name, shape).protect(images, labels, ids, KEY)
    two = ready(name, shape).protect(images, labels, ids, KEY)
    assert (one.images == two.images).all()
    assert one.images.dtype == np.uint8
    assert one.images.shape == images.shape
    assert not np.shares_memory(one.images, images)
    for before, after in zip(given, (images, labels, ids), strict=True):
        assert (before == after).all()


@pytest.mark.parametrize("name", scheme_names())
def test_the_declaration_holds(name: str) -> None:
    images, labels, ids = batch()
    scheme = ready(name)
    one = scheme.protect(images, labels, ids, KEY)
    two = scheme.protect(images, labels, ids, OTHER)
    assert (one.images != two.images).any() == scheme.declares.keyed
    three = scheme.protect(images, np.zeros_like(labels), ids, KEY)
    assert (one.images != three.images).any() == scheme.declares.uses_labels
    if scheme.declares.reversible and scheme.declares.keyed:
        assert (scheme.recover(one.images, labels, ids, KEY, one.private) == images).all()


@pytest.mark.parametrize("name", scheme_names())
def test_input_in_any_memory_layout_gives_the_same(name: str) -> None:
    images, labels, ids = batch()
    scheme = ready(name)
    wide = np.zeros((24, 16, 20, 3), dtype=np.uint8)
    wide[::2] = images
    for other in (np.asfortranarray(images), wide[::2]):
        got = scheme.protect(other, labels, ids[::-1][::-1], KEY)
        assert (got.images == scheme.protect(images, labels, ids, KEY).images).all()


@pytest.mark.parametrize("name", scheme_names())
def test_batch_size_and_order_change_no_byte(name: str) -> None:
    images, labels, ids = batch(23)
    scheme, pool = ready(name), ArrayPool.from_arrays(images, labels, ids)
    whole = scheme.protect(images, labels, ids, KEY, pool)
    order = np.random.default_rng(1).permutation(23)
    for rows in np.split(order, [1, 3, 10]):
        part = scheme.protect(images[rows], labels[rows], ids[rows], KEY, pool)
        assert (part.images == whole.images[rows]).all()
        for published, values in part.side.items():
            assert (values == whole.side[published][rows]).all()


@pytest.mark.parametrize("name", scheme_names())
@pytest.mark.parametrize(
    "shape", [(8, 9, 3), (31, 8, 1), (57, 64, 3), (512, 40, 1), (224, 512, 3)], ids=str
)
def test_every_shape_is_kept(name: str, shape: tuple[int, int, int]) -> None:
    if name == "image_to_perturbation" and max(shape) > 64:
        pytest.skip("its networks are fitted to a size, which takes too long for large ones")
    images, labels, ids = batch(4, shape)
    made = ready(name, shape).protect(images, labels, ids, KEY)
    assert made.images.shape == images.shape
    if name != "plain":
        assert (made.images != images).any(axis=(1, 2, 3)).all(), "an image passed as it was"
    for values in (*made.side.values(), *made.private.values()):
        assert len(values) == 4


@pytest.mark.parametrize("name", scheme_names())
def test_records_are_plain_json_and_tell_the_parameters(name: str) -> None:
    scheme = make_scheme(name, {}, "t", fitted=learnt(name, 1))
    record = json.loads(json.dumps(scheme.record()))
    assert record["name"] == name
    assert record["fitted_hash"] == learnt(name, 1).hash != ""
    assert record["parameters"] == json.loads(scheme.params.canonical())
    assert record["declaration"]["risk_notes"]
    assert scheme.made(record)
    assert not make_scheme(name, {}, "t", fitted=learnt(name, 2)).made(record)
    assert scheme_of_record(record, "here", fitted=learnt(name, 1)).made(record)
    with pytest.raises(SettingsError, match=f"another fitted {name}"):
        scheme_of_record(record, "here", fitted=learnt(name, 2))


@pytest.mark.parametrize("name", scheme_names())
@pytest.mark.parametrize(
    "fault", ["float", "five channels", "labels", "label type", "ids", "id type"]
)
def test_wrong_input_is_refused(name: str, fault: str) -> None:
    images, labels, ids = batch()
    wrong = {
        "float": (images / 255, labels, ids),
        "five channels": (np.zeros((12, 8, 8, 5), np.uint8), labels, ids),
        "labels": (images, labels[:3], ids),
        "label type": (images, labels / 2, ids),
        "ids": (images, labels, ids[:3]),
        "id type": (images, labels, ids.astype(np.int64)),
    }[fault]
    with pytest.raises(ProtectionError, match="must be"):
        ready(name).protect(*wrong, KEY)


def test_what_a_scheme_learnt_changes_its_stream() -> None:
    fitted = [None, learnt("plain", 1), learnt("plain", 2)]
    streams = [make_scheme("plain", {}, "t", fitted=each).stream(KEY) for each in fitted]
    assert len({stream.secret for stream in streams}) == 3


def test_labels_and_queries_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="labels"):
        Declaration(
            keyed=True, reversible=False, guarantee=None, protects_queries=True, uses_labels=True,
            provenance="ours", source="t",
        )  # fmt: skip


def test_a_pool_is_the_same_for_any_order() -> None:
    images, labels, ids = batch(30)
    order = np.random.default_rng(0).permutation(30)
    one = ArrayPool.from_arrays(images, labels, ids)
    two = ArrayPool.from_arrays(images[order], labels[order], ids[order])
    assert (one.ids == two.ids).all()
    assert (one.labels == two.labels).all()
    assert (one.take(np.arange(30)) == two.take(np.arange(30))).all()
    assert sorted(map(bytes, ids)) == list(map(bytes, one.ids))


def test_plain_is_plain() -> None:
    images, labels, ids = batch()
    scheme = make_scheme("plain", {}, "t")
    assert (scheme.protect(images, labels, ids, KEY).images == images).all()
    assert scheme.key_space_bits((8, 8, 3)) == 0


# ------------------------------------------------------------------------------ frozen outcomes


def counted(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twelve images without any generator: see docs/randomness.md."""
    k = np.arange(int(np.prod(shape)))
    rows = [(7 * k + k * k // 31 + 13 * i) % 256 for i in range(12)]
    ids = np.array([[(i * 97 + j * 31) % 256 for j in range(16)] for i in range(12)], np.uint8)
    return np.array(rows, np.uint8).reshape(12, *shape), np.arange(12) % 3, ids


@pytest.mark.parametrize(
    "vector", VECTORS["schemes"], ids=lambda v: f"{v['scheme']}-{v['version']}"
)
def test_frozen_outcomes_hold(vector: dict[str, Any]) -> None:
    # Where this fails, old releases can no longer be reproduced: raise the scheme's version and
    # add vectors instead of altering them.
    scheme = make_scheme(vector["scheme"], vector["parameters"], "vectors.json")
    assert scheme.version == vector["version"]
    made = scheme.protect(*counted(tuple(vector["shape"])), KEY)
    assert made.images[0, 0, :8, 0].tolist() == vector["first_pixels"]
    assert hashlib.sha256(made.images.tobytes()).hexdigest() == vector["sha256"]
