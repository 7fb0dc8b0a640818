"""Cases read from disk: each target is linked to its own original, the attacker owns others."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.case import Released, case_from_originals, load_case, with_network
from veilset.data.shards import ImageSet, Part, write_set
from veilset.errors import CorruptError, SettingsError
from veilset.keys import Key
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.protect import protect_set
from veilset.schemes.visualmixer import VisualMixer
from veilset.training.loader import read_samples
from veilset.training.loop import Subject, train
from veilset.training.params import TrainingParams

KEY = Key(bytes(range(32)))


def part(count: int, rng: np.random.Generator, persons: int = 0) -> Part:
    ids = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    named = [f"p{i % persons}" if persons else "" for i in range(count)]
    groups = np.array(named, dtype=object)
    return ids, np.arange(count) % 2, images, {"group": groups}


def drop(root: Path, scheme: Scheme, seed: int = 0, persons: int = 0, **counts: int) -> Released:
    rng = np.random.default_rng(seed)
    places = Released(root / "ingested", root / "protected", root / "provenance")
    write_set(
        places.ingested, kind="ingested", dataset="t", classes=("a", "b"),
        parts={split: part(count, rng, persons) for split, count in counts.items()},
    )  # fmt: skip
    source = ImageSet.open(places.ingested)
    protect_set(source, scheme, KEY, places.protected, places.provenance, dataset="t")
    return places


@settings(max_examples=8, deadline=None)
@given(train=st.integers(1, 20), test=st.integers(1, 9), auxiliary=st.integers(1, 9))
def test_each_target_is_linked_to_its_own_original(
    tmp_path_factory: pytest.TempPathFactory, train: int, test: int, auxiliary: int
) -> None:
    root = tmp_path_factory.mktemp("case")
    places = drop(root, Plain(), train=train, test=test, auxiliary=auxiliary)
    case = load_case([places], Plain(), seed=0, effort="quick")
    assert len(case.truth.ids) == train + test
    np.testing.assert_array_equal(case.release.images, case.truth.originals)
    private = ImageSet.open(places.ingested)
    owned = {row.tobytes().hex() for row in private.ids("auxiliary")}
    assert {row.tobytes().hex() for row in case.attacker.ids} == owned
    assert not owned & set(case.truth.ids)
    assert case.attacker.key.fingerprint != KEY.fingerprint
    ids = np.array([list(bytes.fromhex(name)) for name in case.truth.ids], dtype=np.uint8)
    np.testing.assert_array_equal(
        case.release.published_ids, Plain().stream(KEY).published_ids(ids)
    )


def test_an_image_of_two_drops_counts_once(tmp_path: Path) -> None:
    first = drop(tmp_path / "first", Plain(), train=9, auxiliary=4)
    again = drop(tmp_path / "again", Plain(), train=9, auxiliary=4)
    other = drop(tmp_path / "other", Plain(), seed=1, train=5, auxiliary=3, gallery=2)
    case = load_case([first, again, other], Plain(), seed=0, effort="quick")
    assert len(case.truth.ids) == len(set(case.truth.ids)) == 14
    assert len(case.attacker.images) == 7
    assert case.attacker.gallery is not None
    assert len(case.attacker.gallery.images) == 2


def test_what_cannot_be_attacked_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="auxiliary"):
        load_case([drop(tmp_path / "a", Plain(), train=4)], Plain(), seed=0, effort="quick")
    places = drop(tmp_path / "b", Plain(), train=4, auxiliary=4)
    nothing = Released(places.ingested, places.protected, tmp_path / "none")
    with pytest.raises(SettingsError, match="nothing was released"):
        load_case([nothing], Plain(), seed=0, effort="quick")
    with pytest.raises(SettingsError, match="not made by visualmixer"):
        load_case([places], VisualMixer(), seed=0, effort="quick")
    other = drop(tmp_path / "c", Plain(), seed=5, train=4, auxiliary=4)
    mixed_up = Released(places.ingested, places.protected, other.provenance)
    with pytest.raises(CorruptError, match="provenance"):
        load_case([mixed_up], Plain(), seed=0, effort="quick")


def test_originals_are_found_by_the_key_alone(tmp_path: Path) -> None:
    scheme = VisualMixer()
    places = drop(tmp_path, scheme, train=30, auxiliary=20)
    public, private = ImageSet.open(places.protected), ImageSet.open(places.ingested)
    case = case_from_originals(public, private, scheme, KEY, seed=0, effort="quick")
    assert len(case.truth.ids) == 30
    assert len(case.attacker.images) == 20, "what was not released is the attacker's"
    ids = np.array([list(bytes.fromhex(name)) for name in case.truth.ids], dtype=np.uint8)
    labels = np.zeros(len(ids), dtype=np.int64)
    again = scheme.protect(case.truth.originals, labels, ids, KEY).images
    np.testing.assert_array_equal(again, case.release.images)
    np.testing.assert_array_equal(case.release.published_ids, scheme.stream(KEY).published_ids(ids))
    with pytest.raises(SettingsError, match="key"):
        case_from_originals(public, private, scheme, Key(bytes(32)), seed=0, effort="quick")


def protected(*drops: Released) -> list[ImageSet]:
    return [ImageSet.open(places.protected) for places in drops]


def trained(root: Path, *drops: Released) -> Path:
    folders = [places.protected for places in drops]
    roots = [images.manifest.root for images in protected(*drops)]
    subject = Subject("small_cnn", ("a", "b"), "plain", Plain.declares, {"width": 4}, roots)
    _, samples = read_samples(folders, "train", masks=False)
    params = TrainingParams(epochs=1, batch_size=8, device="cpu", crop=1, seed=3)
    return train(samples, samples, params, subject, root / "model").folder


def test_members_are_what_a_cnn_was_trained_on_and_outsiders_the_rest(tmp_path: Path) -> None:
    counts = {"train": 12, "validation": 4, "test": 5, "auxiliary": 6}
    drops = [drop(tmp_path / name, Plain(), seed, **counts) for seed, name in enumerate("xy")]
    case = load_case(drops, Plain(), seed=0, effort="quick")
    case = with_network(case, protected(*drops), trained(tmp_path, *drops))
    network = case.network
    assert network is not None and network.outsiders is not None and network.retrain is not None
    seen, truth = network.outsiders
    for ids, splits in ((case.truth.ids, ("train",)), (truth.ids, ("validation", "test"))):
        wanted = [row.tobytes().hex() for places in drops for split in splits
                  for row in ImageSet.open(places.ingested).ids(split)]  # fmt: skip
        assert sorted(ids) == sorted(wanted)
    np.testing.assert_array_equal(seen.images, truth.originals)
    assert len(case.attacker.images) == 12
    again = network.retrain(case.release.images, case.release.labels, 7)
    assert again.mean == pytest.approx(network.mean)


def test_without_other_splits_there_are_no_outsiders(tmp_path: Path) -> None:
    places = drop(tmp_path, Plain(), train=9, auxiliary=4)
    case = load_case([places], Plain(), seed=0, effort="quick")
    case = with_network(case, protected(places), trained(tmp_path, places))
    assert case.network is not None and case.network.outsiders is None


def test_a_cnn_of_another_release_is_refused(tmp_path: Path) -> None:
    one, other = (drop(tmp_path / name, Plain(), seed, train=9, auxiliary=4)
                  for seed, name in enumerate("xy"))  # fmt: skip
    model = trained(tmp_path, one)
    for drops in ([other], [one, other]):
        case = load_case(drops, Plain(), seed=0, effort="quick")
        with pytest.raises(SettingsError, match="another release"):
            with_network(case, protected(*drops), model)
    with pytest.raises(SettingsError, match="no image under attack"):
        with_network(load_case([other], Plain(), seed=0, effort="quick"), protected(one), model)


def test_where_all_is_released_the_attacker_owns_some_that_are_no_targets(tmp_path: Path) -> None:
    places = drop(tmp_path, Plain(), train=40)
    public, private = ImageSet.open(places.protected), ImageSet.open(places.ingested)
    case = case_from_originals(public, private, Plain(), KEY, seed=0, effort="quick")
    assert (len(case.attacker.images), len(case.truth.ids)) == (10, 30)
    owned = {row.tobytes().hex() for row in case.attacker.ids}
    assert not owned & set(case.truth.ids)
    assert case.attacker.gallery is None, "nobody is named, so nobody can be recognised"


def test_persons_are_drawn_whole_and_half_of_their_photographs_are_the_gallery(
    tmp_path: Path,
) -> None:
    places = drop(tmp_path, Plain(), train=40, persons=9)
    public, private = ImageSet.open(places.protected), ImageSet.open(places.ingested)
    case = case_from_originals(public, private, Plain(), KEY, seed=3, effort="quick")
    gallery = case.attacker.gallery
    assert gallery is not None
    assert len(case.attacker.images) >= 10
    assert len(case.attacker.images) + len(gallery.images) + len(case.truth.ids) == 40
    assert not set(case.attacker.groups) & (set(case.truth.groups) | set(gallery.groups))
    for name in set(case.truth.groups) | set(gallery.groups):
        targets, known = (case.truth.groups == name).sum(), (gallery.groups == name).sum()
        assert targets - known in (0, 1)
