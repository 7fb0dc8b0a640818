"""Duplicates: exact ones by id, near ones against a brute-force reference."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_decode import SHARED

from veilset.data.duplicates import exact_duplicates, features, joined, near_duplicates
from veilset.types import Images, IntArray


def ids_of(count: int) -> list[bytes]:
    rng = np.random.default_rng(5)
    return [rng.bytes(16) for _ in range(count)]


def clusters_of(images: Images, ids: list[bytes], threshold: float = 2.0) -> list[int]:
    found = features(images)
    return near_duplicates(found, ids, lambda rows: images[rows], threshold).tolist()


def brute_force(images: Images, ids: list[bytes], threshold: float = 2.0) -> list[int]:
    """All pairs, by definition."""
    count = len(images)
    flat = images.reshape(count, -1).astype(int)
    cluster = list(range(count))
    for i in range(count):
        for j in range(i):
            if np.abs(flat[i] - flat[j]).mean() <= threshold:
                old, new = cluster[i], cluster[j]
                cluster = [new if c == old else c for c in cluster]
    members = {c: [i for i in range(count) if cluster[i] == c] for c in set(cluster)}
    return [min(members[c], key=lambda i: ids[i]) for c in cluster]


def photographs(count: int, size: int = 32, channels: int = 3) -> Images:
    """Smooth random pictures, each with many slopes for the hash."""
    rng = np.random.default_rng(9)
    coarse = rng.integers(0, 256, (count, 9, 9, channels), dtype=np.uint8)
    images = np.empty((count, size, size, channels), np.uint8)
    for image, small in zip(images, coarse, strict=True):
        for c in range(channels):
            image[:, :, c] = Image.fromarray(small[:, :, c]).resize((size, size))
    return images


def test_exact_duplicates_and_conflicts() -> None:
    ids = [b"a", b"b", b"a", b"c", b"b", b"a"]
    found = exact_duplicates(ids, [0, 1, 0, 2, 3, 0])
    assert found.first.tolist() == [0, 1, 0, 3, 1, 0]
    assert found.conflicting.tolist() == [False, True, False, False, True, False]
    assert exact_duplicates([], []).first.tolist() == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30))
def test_exact_duplicates_by_definition(rows: list[tuple[int, int]]) -> None:
    ids, labels = [bytes([i]) for i, _ in rows], [label for _, label in rows]
    found = exact_duplicates(ids, labels)
    for n, own in enumerate(ids):
        assert found.first[n] == ids.index(own)
        assert found.conflicting[n] == (
            len({x for i, x in zip(ids, labels, strict=True) if i == own}) > 1
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_near_copies_are_found(channels: int) -> None:
    originals = photographs(60, channels=channels)
    rng = np.random.default_rng(1)
    noise = rng.integers(-2, 3, originals.shape)
    noisy = np.clip(originals.astype(int) + noise, 0, 255).astype(np.uint8)
    brighter = np.clip(originals[:20].astype(int) + 1, 0, 255).astype(np.uint8)
    images = np.concatenate([originals, noisy, brighter])
    ids = ids_of(len(images))
    assert clusters_of(images, ids) == brute_force(images, ids)
    assert len(set(clusters_of(images, ids))) == 60


def test_jpeg_copies_are_found() -> None:
    originals = photographs(40)
    copies = []
    for image in originals:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=95, subsampling=0)
        copies.append(np.array(Image.open(out)))
    images = np.concatenate([originals, np.stack(copies)])
    assert len(set(clusters_of(images, ids_of(80)))) == 40


def test_different_pictures_stay_apart() -> None:
    images = photographs(200)
    assert clusters_of(images, ids_of(200)) == list(range(200))


def test_the_threshold_is_on_all_values_and_inclusive() -> None:
    base = np.full((1, 8, 8, 3), 100, np.uint8)
    shifted = base.copy()
    shifted[0, :4, :, 0] += 12  # Mean difference 12 / 6 = 2.
    images = np.concatenate([base, shifted])
    ids = [bytes(16), b"\1" * 16]
    assert clusters_of(images, ids, 2.0) == [0, 0]
    assert clusters_of(images, ids, 1.99) == [0, 1]


def test_a_chain_is_one_cluster_under_its_smallest_id() -> None:
    images = np.stack([np.full((8, 8, 1), 2 * i, np.uint8) for i in range(20)])
    ids = ids_of(20)
    smallest = ids.index(min(ids))
    assert clusters_of(images, ids) == [smallest] * 20


@given(st.integers(0, 2**32), st.integers(2, 40), st.sampled_from([0.0, 1.0, 2.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_flat_pictures_are_found_as_by_brute_force(seed: int, count: int, limit: float) -> None:
    # One hash for all of them: the bounds alone decide which pairs are read.
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(0, 256, (count, 8, 1, 1)), axis=1).repeat(8, axis=2)
    images = rows.astype(np.uint8)
    ids = ids_of(count)
    assert clusters_of(images, ids, limit) == brute_force(images, ids, limit)


def test_few_images_are_read_and_the_order_does_not_matter() -> None:
    images = np.concatenate([photographs(300), photographs(3)])
    ids = ids_of(303)
    read = 0

    def take(rows: IntArray) -> Images:
        nonlocal read
        read += len(rows)
        return images[rows]

    found = features(images)
    clusters = near_duplicates(found, ids, take, 2.0)
    assert read < 60
    order = np.random.default_rng(0).permutation(303)
    again = clusters_of(images[order], [ids[i] for i in order])
    assert [ids[i] for i in clusters[order]] == [ids[order[i]] for i in again]


def test_nothing_and_one() -> None:
    assert clusters_of(np.zeros((0, 8, 8, 1), np.uint8), []) == []
    assert clusters_of(np.zeros((1, 4, 4, 3), np.uint8), [bytes(16)]) == [0]


def test_thousands_of_equal_pictures_are_one_cluster() -> None:
    images = np.zeros((3000, 4, 4, 1), np.uint8)
    ids = ids_of(3000)
    assert set(clusters_of(images, ids)) == {ids.index(min(ids))}


def test_on_real_pictures_as_by_brute_force() -> None:
    path = SHARED / "fashion_mnist_10k/test.parquet"
    if not path.is_file():
        pytest.skip(f"the shared data set {path} is not here")
    rows = pq.read_table(path).column("image").slice(0, 250).to_pylist()
    images = np.stack([np.array(Image.open(io.BytesIO(row["bytes"]))) for row in rows])[..., None]
    ids = ids_of(250)
    found, expected = clusters_of(images, ids, 8.0), brute_force(images, ids, 8.0)
    # Candidates come by hash: none is invented, and at this generous threshold few are missed.
    near = [i for i in range(250) if found[i] != i]
    assert all(expected[i] == expected[found[i]] for i in near)


@given(st.integers(4, 40), st.integers(4, 40), st.sampled_from([1, 3]), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_features_are_what_they_are_called(h: int, w: int, channels: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, h, w, channels), dtype=np.uint8)
    found = features(images)
    greys = [np.array(Image.fromarray(i.squeeze()).convert("L")) for i in images]
    assert np.allclose(found.brightness, [grey.mean() for grey in greys])
    assert np.allclose(found.blocks.sum(axis=1), images.reshape(3, -1).mean(axis=1), atol=1e-3)
    gap = np.abs(images[0].astype(int) - images[1]).mean()
    assert np.abs(found.blocks[0] - found.blocks[1]).sum() <= gap + 1e-3
    again = joined([features(images[:1]), features(images[1:])])
    assert np.array_equal(again.hash, found.hash)
    assert np.array_equal(again.blocks, found.blocks)


def test_the_hash_is_of_differences() -> None:
    rising = np.arange(9, dtype=np.uint8)[None, :, None].repeat(8, axis=0)
    images = np.stack([rising, rising[:, ::-1], np.zeros_like(rising)])
    assert features(images).hash.tolist() == [2**64 - 1, 0, 0]
