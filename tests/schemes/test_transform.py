"""Schemes in users' own code: NumPy, torch and torchvision get the same pixels as the pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

import veilset.schemes
from veilset.data.shards import ImageSet, write_set
from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes import Pixelate, PixelBlockMixing, Plain, VisualMixer
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import scheme_of_record
from veilset.schemes.transform import Protect

KEY = Key(bytes(range(32)))
MIXER = VisualMixer(region_px=8, n=4)


def pixels(count: int = 3, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 16, 12, channels), dtype=np.uint8)


def test_schemes_are_imported_by_their_class() -> None:
    assert veilset.schemes.VisualMixer is VisualMixer
    with pytest.raises(ImportError):
        from veilset.schemes import Nothing  # noqa: F401


def test_numpy_and_torch_batches_get_the_same() -> None:
    images = pixels()
    made = MIXER(images, key=KEY)
    assert made.dtype == np.uint8
    assert (made != images).any()
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert (MIXER(tensor, key=KEY).permute(0, 2, 3, 1).numpy() == made).all()
    ids = np.arange(48, dtype=np.uint8).reshape(3, 16)
    given = MIXER(images, key=KEY, ids=ids)
    assert (given == MIXER.protect(images, np.zeros(3, np.int64), ids, KEY).images).all()


def test_an_image_is_protected_the_same_way_alone_and_in_any_batch() -> None:
    images = pixels()
    made = MIXER(images, key=KEY)
    assert (MIXER(images[1:2], key=KEY) == made[1:2]).all()
    assert (MIXER(images[::-1].copy(), key=KEY) == made[::-1]).all()
    assert (MIXER(images, key=Key(bytes(32))) != made).any()


def test_what_is_missing_is_asked_for() -> None:
    with pytest.raises(ProtectionError, match="visualmixer is keyed: give key"):
        MIXER(pixels())
    with pytest.raises(ProtectionError, match="uses labels"):
        PixelBlockMixing(block_height=8, block_width=6)(pixels(), key=KEY)
    with pytest.raises(ProtectionError, match="before scaling"):
        MIXER(torch.zeros(2, 3, 8, 8), key=KEY)
    with pytest.raises(ProtectionError, match="training images only"):
        Protect(PixelBlockMixing(), KEY)
    with pytest.raises(SettingsError, match="region_px"):
        VisualMixer(region_px=0)
    assert (Pixelate(block_px=4)(pixels()) == Pixelate(block_px=4)(pixels(), key=KEY)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_samples_of_every_kind(channels: int) -> None:
    images = pixels(2, channels)
    expected = torch.from_numpy(MIXER(images, key=KEY)).permute(0, 3, 1, 2)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    transform = v2.Compose([Protect(MIXER, KEY)])
    assert (transform(tensor) == expected).all()
    assert (transform(tensor[0]) == expected[0]).all()
    shown = transform(tv_tensors.Image(tensor))
    assert isinstance(shown, tv_tensors.Image)
    assert (shown == expected).all()
    single = images[0, ..., 0] if channels == 1 else images[0]
    assert (np.asarray(transform(Image.fromarray(single))).reshape(images[0].shape)
            == expected[0].permute(1, 2, 0).numpy()).all()  # fmt: skip
    boxes = tv_tensors.BoundingBoxes([[0, 0, 4, 4]], format="XYXY", canvas_size=(16, 12))  # type: ignore[call-overload]
    sample = transform({"image": tv_tensors.Image(tensor[0]), "boxes": boxes, "label": 3})
    assert (sample["image"] == expected[0]).all()
    assert (sample["boxes"] == boxes).all()
    assert sample["label"] == 3
    assert "region_px" in repr(transform)
    assert KEY.secret.hex() not in repr(transform)


def test_a_client_protects_queries_as_a_release_was_protected(tmp_path: Path) -> None:
    images = pixels(6)
    part = (np.arange(96, dtype=np.uint8).reshape(6, 16), np.arange(6) % 2, images, {})
    source = tmp_path / "plain"
    write_set(source, kind="ingested", dataset="t", classes=("a", "b"), parts={"train": part})
    manifest = protect_set(
        ImageSet.open(source), MIXER, KEY, tmp_path / "release", None, dataset="t"
    )
    transform = Protect.like(tmp_path / "release", KEY)
    assert transform.scheme.params == MIXER.params
    assert (MIXER(images, key=KEY) == transform.scheme(images, key=KEY)).all()
    with pytest.raises(ProtectionError, match="names no scheme"):
        Protect.like(source)
    assert manifest.scheme is not None
    with pytest.raises(SettingsError, match="made by version 99"):
        scheme_of_record({**manifest.scheme, "version": 99}, "here")
    assert isinstance(scheme_of_record(Plain().record(), "here"), Plain)
