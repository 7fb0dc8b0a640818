"""Decoding: a corpus of one file of each kind, made here by Pillow."""

import io
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from veilset.data.decode import (
    REASONS,
    Decoded,
    DecodeParams,
    Refused,
    decode,
    decode_array,
    decode_packed,
    pack,
    refuse_unseen,
    unpack,
)
from veilset.errors import SettingsError

SHARED = Path(__file__).resolve().parents[2].parent / "shared/datasets"
PARAMS = DecodeParams(size=16)
GREY = DecodeParams(size=16, channels=1)
NATIVE = DecodeParams(size=(12, 20), fit="stretch")  # The corpus's own size: no resampling.


def scene(height: int = 12, width: int = 20, channels: int = 3) -> np.ndarray:
    """A picture without any symmetry: uint8 (H, W, C)."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    return ((y * 17 + x * 9 + c * 60 + x * y) % 256).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(scene())


def grey() -> Image.Image:
    return Image.fromarray(scene(channels=1)[:, :, 0])


def with_alpha(mode: str) -> Image.Image:
    image = (rgb() if mode == "RGBA" else grey()).convert(mode)
    alpha = Image.fromarray(
        np.where(np.arange(20) < 7, 0, 255).astype(np.uint8)[None].repeat(12, 0)
    )
    image.putalpha(alpha)
    return image


def palette(transparency: object = None) -> bytes:
    image = rgb().quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    return saved(image, "PNG", **options)


def raw_png(bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of 12 x 20 written by hand."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    header = struct.pack(">IIBBBBB", 20, 12, bits, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        extra,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_chunk(name: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + check


def wide_grey() -> np.ndarray:
    return (scene(channels=1)[:, :, 0].astype(np.uint16) << 8) + 0x7F


LOSSLESS: Mapping[str, Callable[[], bytes]] = {
    "png": lambda: saved(rgb(), "PNG"),
    "png interlaced": lambda: saved(rgb(), "PNG", interlace=1),
    "bmp": lambda: saved(rgb(), "BMP"),
    "tiff": lambda: saved(rgb(), "TIFF"),
    "tiff lzw": lambda: saved(rgb(), "TIFF", compression="tiff_lzw"),
    "tiff deflate": lambda: saved(rgb(), "TIFF", compression="tiff_adobe_deflate"),
    "ppm": lambda: saved(rgb(), "PPM"),
    "webp": lambda: saved(rgb(), "WEBP", lossless=True),
}

GREY_LOSSLESS: Mapping[str, Callable[[], bytes]] = {
    "png": lambda: saved(grey(), "PNG"),
    "png 16": lambda: saved(Image.fromarray(wide_grey()), "PNG"),
    "tiff 16": lambda: saved(Image.fromarray(wide_grey()), "TIFF"),
    "pgm": lambda: saved(grey(), "PPM"),
    "pgm 16": lambda: b"P5 20 12 65535\n" + wide_grey().astype(">u2").tobytes(),
    "gif": lambda: saved(grey(), "GIF"),
    "bmp": lambda: saved(grey(), "BMP"),
}

OTHERS: Mapping[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(rgb(), "JPEG"),
    "jpeg progressive": lambda: saved(rgb(), "JPEG", progressive=True),
    "jpeg restarts": lambda: saved(rgb(), "JPEG", restart_marker_blocks=1),
    "jpeg grey": lambda: saved(grey(), "JPEG"),
    "jpeg cmyk": lambda: saved(rgb().convert("CMYK"), "JPEG"),
    "webp lossy": lambda: saved(rgb(), "WEBP"),
    "webp alpha": lambda: saved(with_alpha("RGBA"), "WEBP"),
    "png 1": lambda: saved(grey().convert("1"), "PNG"),
    "png palette": palette,
    "png palette clear": lambda: palette(3),
    "png rgba": lambda: saved(with_alpha("RGBA"), "PNG"),
    "png la": lambda: saved(with_alpha("LA"), "PNG"),
    "gif": lambda: saved(rgb().quantize(16), "GIF"),
    "tiff cmyk": lambda: saved(rgb().convert("CMYK"), "TIFF"),
    "tiff float": lambda: saved(Image.fromarray(scene()[:, :, 0] / np.float32(255)), "TIFF"),
    "bmp rle": lambda: RLE_BMP,
}

# 8-bit run-length BMP of 20 x 12, every row one run.
_RUNS = b"".join(bytes([20, row * 20, 0, 0]) for row in range(12)) + b"\0\1"
_COLOURS = b"".join(bytes([i, i, i, 0]) for i in range(256))
RLE_BMP = (
    b"BM" + struct.pack("<IHHI", 54 + 1024 + len(_RUNS), 0, 0, 54 + 1024)
    + struct.pack("<IiiHHIIiiII", 40, 20, 12, 1, 8, 1, len(_RUNS), 0, 0, 256, 0) + _COLOURS + _RUNS
)  # fmt: skip

CORPUS = {
    **{f"rgb {name}": make for name, make in LOSSLESS.items()},
    **{f"grey {name}": make for name, make in GREY_LOSSLESS.items()},
    **OTHERS,
}


def taken(content: bytes, params: DecodeParams = NATIVE) -> Decoded:
    result = decode(content, params)
    assert isinstance(result, Decoded), result
    assert result.pixels.shape == params.shape
    assert result.pixels.dtype == np.uint8
    return result


def refused(content: bytes, reason: str, params: DecodeParams = NATIVE) -> Refused:
    result = decode(content, params)
    assert isinstance(result, Refused), "it was taken"
    assert result.reason == reason, result
    assert result.sentence.isascii() and result.sentence.endswith(".")
    assert reason in REASONS
    return result


# ------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_give_their_pixels(name: str) -> None:
    result = taken(LOSSLESS[name]())
    assert np.array_equal(result.pixels, scene())
    assert result.digest == taken(LOSSLESS["png"]()).digest
    assert (result.width, result.height, result.mode) == (20, 12, "RGB")


@pytest.mark.parametrize("name", GREY_LOSSLESS)
def test_grey_files_give_the_high_byte(name: str) -> None:
    params = DecodeParams(size=(12, 20), fit="stretch", channels=1)
    result = taken(GREY_LOSSLESS[name](), params)
    assert np.array_equal(result.pixels, scene(channels=1))
    colour = taken(GREY_LOSSLESS[name]())
    assert np.array_equal(colour.pixels, scene(channels=1).repeat(3, axis=2))


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_are_taken(name: str) -> None:
    result = taken(OTHERS[name]())
    assert result.pixels.std() > 10


def test_jpeg_is_near_its_picture() -> None:
    smooth = np.mgrid[0:64, 0:64][1].astype(np.uint8)[:, :, None].repeat(3, axis=2) * 3
    params = DecodeParams(size=64)
    for mode in ("RGB", "CMYK", "L"):
        content = saved(Image.fromarray(smooth).convert(mode), "JPEG", quality=95)
        gap = np.abs(taken(content, params).pixels.astype(int) - smooth)
        assert gap.mean() < 3, mode


def test_wrong_names_do_not_matter_and_magic_does() -> None:
    assert taken(LOSSLESS["png"]()).format == "PNG"
    for content, reason in [
        (b"", "empty"),
        (b"hello, this is text", "not_an_image"),
        (b"\x00\x01\x02\x03" * 9, "not_an_image"),
        (b"<!DOCTYPE html><html></html>", "format_not_allowed"),
        (b"%PDF-1.7 ...", "format_not_allowed"),
        (b"P2 1 1 255 17", "format_not_allowed"),
        (b"PK\x03\x04....", "format_not_allowed"),
        (saved(rgb(), "ICO"), "format_not_allowed"),
        (saved(rgb(), "JPEG2000"), "format_not_allowed"),
    ]:
        refused(content, reason)
        unseen = refuse_unseen(content, NATIVE)
        assert unseen is not None and unseen.reason == reason


def test_only_declared_formats() -> None:
    refused(LOSSLESS["png"](), "format_not_allowed", DecodeParams(formats=("JPEG",)))
    assert refuse_unseen(LOSSLESS["bmp"](), NATIVE) is None


# ---------------------------------------------------------------------------------- damaged files


# BMP, GIF, TIFF, PPM: an end that holds no pixels (colour tables, trailers) may be missing.
@pytest.mark.parametrize("name", CORPUS)
def test_every_truncation_is_refused_or_whole(name: str) -> None:
    content = CORPUS[name]()
    whole = taken(content).pixels
    strict = content[:2] in (b"\xff\xd8", b"\x89P", b"RI")
    for length in {*range(0, len(content), 1 + len(content) // 150), *range(len(content))[-20:]}:
        result = decode(content[:length], NATIVE)
        if isinstance(result, Decoded):
            assert not strict, f"{length} of {len(content)} bytes were taken"
            assert np.array_equal(result.pixels, whole), f"{length} of {len(content)} bytes"


@pytest.mark.parametrize("name", CORPUS)
def test_bytes_after_the_end_change_nothing(name: str) -> None:
    content = CORPUS[name]()
    before, after = taken(content), taken(content + b" 7 8 9 SECRET-AFTER-THE-END" * 50)
    assert before.digest == after.digest and np.array_equal(before.pixels, after.pixels)


@pytest.mark.parametrize("name", [n for n in CORPUS if "png" in n])
def test_each_flipped_bit_of_a_png_is_noticed(name: str) -> None:
    content = CORPUS[name]()
    for at in range(0, len(content), 3):
        broken = bytearray(content)
        broken[at] ^= 1 << at % 8
        assert isinstance(decode(bytes(broken), NATIVE), Refused), at


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from([n for n in CORPUS if "tiff" not in n]), data=st.data())
def test_no_bytes_raise(name: str, data: st.DataObject) -> None:
    content = bytearray(CORPUS[name]())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    result = decode(bytes(content), NATIVE)
    if isinstance(result, Decoded):
        assert result.pixels.shape == NATIVE.shape
    else:
        assert result.reason in REASONS and "0x7f" not in result.sentence


def test_a_png_without_its_end_is_refused_though_pillow_takes_it() -> None:
    content = LOSSLESS["png"]()
    Image.open(io.BytesIO(content[:-12])).load()
    refused(content[:-12], "incomplete")
    refused(content[:-1], "incomplete")


def test_a_jpeg_with_a_stray_marker_is_refused() -> None:
    content = saved(Image.fromarray(scene(64, 64)), "JPEG", quality=95)
    middle = content.index(b"\xff\xda") + 200
    refused(content[:middle] + b"\xff\x3c" + content[middle + 2 :], "broken")


def test_the_same_bytes_give_the_same_sentence() -> None:
    for content in (LOSSLESS["tiff"]()[:40], OTHERS["gif"]()[:30], b"BM" + bytes(60)):
        assert decode(content, NATIVE) == decode(content, NATIVE)


# ----------------------------------------------------------------------------------------- limits


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    bmp = bytearray(LOSSLESS["bmp"]())
    bmp[18:26] = struct.pack("<ii", 60_000, -60_000)
    gif = bytearray(OTHERS["gif"]())
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    jpeg = bytearray(OTHERS["jpeg"]())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    webp = bytearray(OTHERS["webp alpha"]())
    webp[24:30] = b"\xff\x3f\x00" * 2
    tiff = saved(Image.new("L", (8, 8)), "TIFF").replace(struct.pack("<HHII", 256, 4, 1, 8),
        struct.pack("<HHII", 256, 4, 1, 60_000)).replace(struct.pack("<HHII", 257, 4, 1, 8),
        struct.pack("<HHII", 257, 4, 1, 60_000))  # fmt: skip
    return {
        "png": bomb(60_000, 60_000), "png 95": bomb(9_750, 9_750), "png 182": bomb(13_500, 13_500),
        "bmp": bytes(bmp), "gif": bytes(gif), "jpeg": bytes(jpeg), "webp": bytes(webp),
        "ppm": b"P6 60000 60000 255\n" + bytes(100), "tiff": tiff,
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_from_their_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pixels(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_pixels)
    refused(bombs()[name], "too_many_pixels")


def test_limits_on_bytes_and_sides() -> None:
    content = LOSSLESS["png"]()
    exact = DecodeParams(max_bytes=len(content), max_pixels=240, max_side=20, min_side=12)
    assert isinstance(decode(content, exact), Decoded)
    refused(content, "too_many_bytes", DecodeParams(max_bytes=len(content) - 1))
    refused(content, "too_many_pixels", DecodeParams(max_pixels=239))
    refused(content, "too_many_pixels", DecodeParams(max_side=19))
    refused(content, "too_small", DecodeParams(min_side=13))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 4)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_tiny_pictures_by_policy(shape: tuple[int, int], fit: str) -> None:
    content = saved(Image.new("RGB", shape, (9, 99, 200)), "PNG")
    refused(content, "too_small", DecodeParams(fit=fit))
    params = DecodeParams(fit=fit, min_side=1, background=(9, 99, 200))
    assert (taken(content, params).pixels == (9, 99, 200)).all()


def test_no_pixels_at_all() -> None:
    refused(bomb(0, 0), "too_small")
    refused(b"P5 0 0 255\n", "broken", DecodeParams(min_side=1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"channels": 2}, "channels"),
        ({"channels": True}, "channels"),
        ({"size": 3}, "size"),
        ({"size": (8, 5000)}, "size"),
        ({"max_pixels": 10**9}, "max_pixels"),
        ({"background": (0, 0, 256)}, "background"),
        ({"formats": ["EPS"]}, "formats"),
        ({"colour": 1}, "colour is unknown"),
    ],
)
def test_settings_are_refused_by_name(values: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        DecodeParams.parse(values, "params.yaml: ingest")


def test_size_as_a_list_from_yaml() -> None:
    assert DecodeParams.parse({"size": [8, 16], "channels": 1}, "x").shape == (8, 16, 1)


# ------------------------------------------------------------------------------------- conversion


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_hidden_colours_are_destroyed(mode: str, kind: str) -> None:
    shown = with_alpha(mode)
    hidden = np.array(shown)
    hidden[:, :7, :-1] = 137  # Under alpha 0.
    params = NATIVE.model_copy(update={"background": (10, 20, 30)})
    one = taken(saved(shown, kind), params)
    other = taken(saved(Image.fromarray(hidden, mode), kind), params)
    assert one.digest == other.digest
    assert (one.pixels[:, :7] == (10, 20, 30)).all()
    expected = scene() if mode == "RGBA" else scene(channels=1).repeat(3, axis=2)
    assert np.array_equal(one.pixels[:, 7:], expected[:, 7:])


def test_half_alpha_is_blended_exactly() -> None:
    pixels = np.concatenate([scene(), np.full((12, 20, 1), 100, np.uint8)], axis=2)
    result = taken(saved(Image.fromarray(pixels), "PNG"))
    expected = np.rint((scene().astype(int) * 100 + 255 * 155) / 255)
    assert np.array_equal(result.pixels, expected)


def test_palette_with_transparency_is_composited() -> None:
    image = rgb().quantize(16)
    expanded, index = np.array(image.convert("RGB")), np.array(image)
    assert np.array_equal(taken(palette()).pixels, expanded)
    expected = np.where((index == 3)[:, :, None], 255, expanded)
    assert np.array_equal(taken(palette(3)).pixels, expected)
    assert np.array_equal(taken(saved(image, "GIF", transparency=3)).pixels, expected)


@pytest.mark.parametrize("wide", [False, True])
def test_transparent_grey_is_composited(wide: bool) -> None:
    values = wide_grey() if wide else scene(channels=1)[:, :, 0]
    clear = int(values[5, 5])
    content = saved(Image.fromarray(values), "PNG", transparency=clear)
    expected = np.where(values == clear, 255, scene(channels=1)[:, :, 0])
    assert np.array_equal(taken(content).pixels[:, :, 1], expected)


def test_transparent_colour_is_composited() -> None:
    clear = tuple(int(v) for v in scene()[4, 4])
    content = saved(rgb(), "PNG", transparency=clear)
    expected = np.where((scene() == clear).all(axis=2, keepdims=True), 255, scene())
    assert np.array_equal(taken(content).pixels, expected)


def test_16_bit_rgb_is_scaled_and_refused_with_a_transparent_colour() -> None:
    wide = (scene().astype(np.uint16) << 8) + 200
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    assert np.array_equal(taken(raw_png(16, 2, rows)).pixels, scene())
    key = png_chunk(b"tRNS", bytes(6))
    refused(raw_png(16, 2, rows, key), "unsupported_mode")


def test_16_bit_is_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    result = taken(saved(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(result.pixels[:, :, 0], ramp >> 8)
    assert result.pixels.mean() < 130  # Pillow's own convert("RGB") clips nearly all to 255.


def test_32_bit_integers_and_floats_by_range() -> None:
    narrow = Image.fromarray(wide_grey().astype(np.int32))
    assert np.array_equal(taken(saved(narrow, "TIFF")).pixels[:, :, 0], scene(channels=1)[:, :, 0])
    for value in (-1, 65_536):
        beyond = wide_grey().astype(np.int32)
        beyond[3, 3] = value
        refused(saved(Image.fromarray(beyond), "TIFF"), "value_range")
    unit = scene(channels=1)[:, :, 0] / np.float32(255)
    result = taken(saved(Image.fromarray(unit), "TIFF"))
    assert np.array_equal(result.pixels[:, :, 0], scene(channels=1)[:, :, 0])
    for value in (-0.01, 1.01, np.nan, np.inf):
        unit[3, 3] = value
        refused(saved(Image.fromarray(unit), "TIFF"), "value_range")


def test_white_as_zero_is_not_taken_for_black() -> None:
    content = saved(Image.fromarray(wide_grey()), "TIFF", tiffinfo={262: 0})
    if np.array_equal(np.array(Image.open(io.BytesIO(content))), wide_grey()):
        refused(content, "unsupported_mode")


def test_lab_has_no_declared_conversion() -> None:
    refused(saved(Image.new("LAB", (20, 12)), "TIFF"), "unsupported_mode")


def test_adobe_cmyk_is_not_inverted() -> None:
    red = Image.new("RGB", (20, 12), (220, 20, 20)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        mean = taken(saved(red, kind)).pixels.reshape(-1, 3).mean(axis=0)
        assert np.allclose(mean, (220, 20, 20), atol=4), kind


def test_rgb_to_grey_by_integer_luma() -> None:
    params = DecodeParams(size=(12, 20), fit="stretch", channels=1)
    r, g, b = np.moveaxis(scene().astype(np.int64), 2, 0)
    expected = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
    assert np.array_equal(taken(LOSSLESS["png"](), params).pixels[:, :, 0], expected)


def test_the_digest_covers_shape_and_pixels() -> None:
    tall = saved(Image.fromarray(scene().reshape(20, 12, 3)), "PNG")
    digests = {taken(c).digest for c in (LOSSLESS["png"](), tall, saved(grey(), "PNG"))}
    assert len(digests) == 3
    small = DecodeParams(size=4)
    assert taken(LOSSLESS["png"](), small).digest == taken(LOSSLESS["bmp"]()).digest


# ---------------------------------------------------------------------- orientation and frames


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(rgb(), kind, exif=exif, **options)
    # The reference: Pillow's own method on an image without the tag.
    plain = Image.open(io.BytesIO(saved(rgb(), kind, **options))).convert("RGB")
    plain.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(plain))
    params = DecodeParams(size=expected.shape[:2], fit="stretch")
    result = taken(content, params)
    assert np.array_equal(result.pixels, expected)
    assert (result.width, result.height) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("value", [0, 9, 77])
def test_impossible_orientations_are_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(taken(saved(rgb(), "PNG", exif=exif)).pixels, scene())


def test_malformed_exif_loses_no_picture() -> None:
    content = saved(rgb(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert np.array_equal(taken(content).pixels, scene())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_pictures_only_where_declared(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [rgb(), Image.fromarray(255 - scene())]
    if kind == "GIF":
        frames = [frame.quantize(16) for frame in frames]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    refused(content, "several_pictures")
    first = taken(content, NATIVE.model_copy(update={"first_frame": True}))
    assert np.array_equal(first.pixels, np.array(frames[0].convert("RGB")))


def test_a_phone_photograph_with_further_pictures_is_its_first() -> None:
    content = saved(rgb(), "MPO", save_all=True, append_images=[Image.new("RGB", (20, 12))])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    result = taken(content)
    assert result.format == "MPO"
    assert np.array_equal(result.pixels, taken(OTHERS["jpeg"]()).pixels)


# ---------------------------------------------------------------------------------------- fitting


def test_crop_takes_the_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (taken(saved(Image.fromarray(wide), "PNG"), PARAMS).pixels == 200).all()
    params = DecodeParams(size=(8, 4))
    tall = saved(Image.fromarray(np.swapaxes(wide, 0, 1)), "PNG")
    assert taken(tall, params).pixels.std() > 0


def test_pad_keeps_proportions_and_stretch_does_not() -> None:
    content = saved(Image.new("RGB", (40, 10), (50, 60, 70)), "PNG")
    padded = taken(content, DecodeParams(size=16, fit="pad", background=(1, 2, 3))).pixels
    assert (padded[6:10] == (50, 60, 70)).all()
    assert (padded[:6] == (1, 2, 3)).all() and (padded[10:] == (1, 2, 3)).all()
    stretched = taken(content, DecodeParams(size=16, fit="stretch")).pixels
    assert (stretched == (50, 60, 70)).all()


def test_reduction_is_the_area_average() -> None:
    pixels = scene(32, 32)
    result = taken(saved(Image.fromarray(pixels), "PNG"), DecodeParams(size=8)).pixels
    exact = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert np.abs(result - exact).max() <= 1


def test_enlarging_is_bicubic() -> None:
    digit = scene(8, 8, 1)
    result = decode_array(digit, DecodeParams(size=32, channels=1))
    assert isinstance(result, Decoded)
    expected = Image.fromarray(digit[:, :, 0]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(result.pixels[:, :, 0], np.array(expected))


def test_resampling_has_these_bytes_everywhere() -> None:
    # Recorded once: another value means that stored sets can no longer be reproduced.
    check = zlib.crc32(taken(saved(Image.fromarray(scene(37, 53)), "PNG"), PARAMS).pixels.tobytes())
    enlarged = decode_array(scene(8, 8), DecodeParams(size=32))
    assert isinstance(enlarged, Decoded)
    assert (check, zlib.crc32(enlarged.pixels.tobytes())) == RECORDED


RECORDED = (1140565025, 2488475647)


@given(
    height=st.integers(4, 60), width=st.integers(4, 60),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    fit=st.sampled_from(["crop", "stretch", "pad"]), channels=st.sampled_from([1, 3]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_shape_is_fitted(
    height: int, width: int, size: tuple[int, int], fit: str, channels: int
) -> None:
    params = DecodeParams(size=size, fit=fit, channels=channels, background=(7, 7, 7))
    flat = decode_array(np.full((height, width, 3), 7, np.uint8), params)
    assert isinstance(flat, Decoded)
    assert flat.pixels.shape == (*size, channels)
    assert (flat.pixels == 7).all()  # Neither cropping, padding nor resampling invents a colour.


# ------------------------------------------------------------------------- arrays and packing


def test_arrays() -> None:
    for array in (scene(), scene(channels=1), scene(channels=1)[:, :, 0], scene()[::-1]):
        result = decode_array(array, NATIVE)
        assert isinstance(result, Decoded)
        expected = array if array.ndim == 3 else array[:, :, None]
        assert np.array_equal(result.pixels, np.broadcast_to(expected, (12, 20, 3)))
    same = decode_array(scene(), NATIVE)
    assert isinstance(same, Decoded) and same.digest == taken(LOSSLESS["png"]()).digest
    for bad in (scene().astype(float), np.zeros(5, np.uint8), np.zeros((5, 5, 2), np.uint8)):
        result = decode_array(bad, NATIVE)
        assert isinstance(result, Refused) and result.reason == "unsupported_mode"


@pytest.mark.parametrize("content", [b"junk", LOSSLESS["png"]()])
def test_packing_keeps_everything(content: bytes) -> None:
    before, after = decode(content, NATIVE), unpack(decode_packed(NATIVE, content), NATIVE)
    if isinstance(before, Refused):
        assert after == before
    else:
        assert isinstance(after, Decoded)
        assert np.array_equal(before.pixels, after.pixels)
        assert (before.digest, before.width, before.height, before.mode, before.format) == (
            after.digest, after.width, after.height, after.mode, after.format,
        )  # fmt: skip


@given(st.binary(max_size=200), st.integers(0, 800))
@settings(max_examples=80, deadline=None)
def test_a_lying_decoder_is_not_believed(noise: bytes, at: int) -> None:
    honest = pack(taken(LOSSLESS["png"]()))
    for answer in (noise, honest[:at], honest[:at] + noise, noise + honest):
        result = unpack(answer, NATIVE)
        if isinstance(result, Decoded):
            assert result.pixels.shape == NATIVE.shape and len(result.digest) == 32
        else:
            assert result.reason in REASONS


# --------------------------------------------------------------------------------- real files


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("sign_digits_exif/test.parquet", "JPEG"),
        ("orl_faces/test.parquet", "PNG"),
        ("cifar10/test_jpeg.parquet", "JPEG"),
    ],
)
def test_real_files(file: str, kind: str) -> None:
    path = SHARED / file
    if not path.is_file():
        pytest.skip(f"the shared data set {path} is not here")
    rows = pq.read_table(path).column("image").slice(0, 60).to_pylist()
    for row in rows:
        result = taken(row["bytes"], DecodeParams(size=32))
        reference = Image.open(io.BytesIO(row["bytes"]))
        assert result.format == kind
        assert {result.width, result.height} == set(reference.size)


def test_importing_data_imports_no_torch() -> None:
    import subprocess

    code = "import sys, veilset.data.ingest; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_png_text_chunks_cannot_bomb() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a" * 80_000_000, zip=True)
    content = saved(rgb(), "PNG", pnginfo=info)
    assert len(content) < 200_000
    result = decode(content, NATIVE)
    assert isinstance(result, Refused) or np.array_equal(result.pixels, scene())
