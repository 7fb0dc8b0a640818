"""From one image's bytes, or array, to uint8 pixels of the set's size; or the reason why not.

The order is: magic bytes, limits from the header (before any pixel is allocated), completeness,
Pillow, conversion, fitting. Nothing but pixels goes on: EXIF, ICC profiles, XMP, text chunks,
thumbnails and bytes after the end of the file are dropped here.

Conversion, by the mode that Pillow decodes to:

* `1`, `L`, `RGB`, `RGBX`: as they are.
* `P`, `PA`: the palette is expanded, with its transparency.
* `LA`, `La`, `RGBA`, `RGBa`, and a transparent colour (tRNS): composited on the declared
  background, so colours hidden under alpha 0 are destroyed.
* `CMYK`, `YCbCr`: to RGB by Pillow's integer formulas (Adobe's inverted CMYK is known to it).
* `I;16*`, and `I` within 0..65535: the high byte, i.e. scaled, not clipped; the same as Pillow does
  to 16-bit RGB. 12-bit TIFF likewise.
* `F` within 0..1: times 255, rounded.
* `LAB` (its conversion is not the same on every machine), `HSV` (no allowed format has it), other
  ranges, 16-bit or float TIFF with white as 0, 16-bit RGB PNG with a transparent colour: refused.

RGB becomes grey by Pillow's integer luma (19595 R + 38470 G + 7471 B + 32768) >> 16; grey becomes
RGB by repetition. ICC profiles are ignored: stored numbers are taken as sRGB. EXIF orientation is
applied once. A phone's MPO file is taken as the JPEG photograph that it begins with, its further
pictures (depth, gain map, preview) are dropped; any other file with several pictures is refused
unless `first_frame` is set.

Fitting resamples each axis by itself: BOX (area average) where it shrinks, BICUBIC where it grows.
Pillow's 8-bit resampling is fixed-point, so the result is the same on every machine.

All of it is ours.
"""

import hashlib
import io
import json
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt

# Imported by name: Pillow would else load every plugin it has when it meets the first WebP or TIFF.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from pydantic import Field, field_validator

from veilset.data.containers import FORMATS, Facts, Format, Refusal, inspect, recognise
from veilset.params import Params
from veilset.types import Images

_PLUGINS = (
    BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin,
    PpmImagePlugin, TiffImagePlugin, WebPImagePlugin,
)  # fmt: skip

Side = Annotated[int, Field(ge=4, le=4096)]
Grey = Annotated[int, Field(ge=0, le=255)]

REASONS: Final[Mapping[str, str]] = {
    "empty": "the file has no bytes",
    "not_an_image": "its first bytes are not an image's",
    "format_not_allowed": "a format that is not allowed",
    "too_many_bytes": "the file is longer than allowed",
    "too_many_pixels": "more pixels, or a longer side, than allowed",
    "too_small": "a side is shorter than allowed",
    "several_pictures": "animated or with several pages",
    "incomplete": "the end of the file is missing",
    "broken": "the decoder refused the bytes",
    "unsupported_mode": "a kind of pixel that has no declared conversion",
    "value_range": "pixel values outside of the declared range",
    "out_of_memory": "decoding needs more memory than allowed",
    "decoder_died": "the decoder's process died on it, twice",
    "decoder_timeout": "decoding took longer than allowed, twice",
    "source_fault": "the source could not read it",
    "no_label": "it has no label",
    "label_unknown": "its label is not among the classes",
    "conflicting_labels": "the same pixels occur under different labels",
}
"""All codes why an image is refused, in words."""


class DecodeParams(Params):
    """How bytes become pixels.

    Attributes:
        size: Side of the set's images, or (height, width).
        channels: 1 (grey) or 3 (RGB).
        fit: How another shape is fitted: `crop` the centre, `stretch`, or `pad` with background.
        background: RGB under transparent pixels and around padded ones.
        formats: What is allowed, by Pillow's names.
        max_bytes: Longest file, bytes.
        max_pixels: Most pixels, width times height, of a file. Below Pillow's own limit.
        max_side: Longest side of a file, pixels.
        min_side: Shortest side of a file, pixels.
        first_frame: Take the first picture of animated and multi-page files, instead of refusing
            them.
    """

    size: Side | tuple[Side, Side] = 32
    channels: Literal[1, 3] = 3
    fit: Literal["crop", "stretch", "pad"] = "crop"
    background: tuple[Grey, Grey, Grey] = (255, 255, 255)
    formats: tuple[Format, ...] = Field(default=FORMATS, min_length=1)
    max_bytes: int = Field(default=64 << 20, ge=1, le=1 << 30)
    max_pixels: int = Field(default=50_000_000, ge=1, le=89_000_000)
    max_side: int = Field(default=30_000, ge=1, le=65_535)
    min_side: int = Field(default=4, ge=1, le=4096)
    first_frame: bool = False

    @field_validator("channels", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        # `True == 1` would pass a Literal.
        if isinstance(value, bool):
            raise ValueError("it must be 1 or 3")
        return value

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image of the set."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width, self.channels


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image that was taken.

    Attributes:
        pixels: uint8 (H, W, C) of the set's shape.
        digest: SHA-256, 32 bytes, over height, width, channels and pixels before fitting: equal for
            the same picture in any file.
        width: Pixels before fitting, after orientation.
        height: Pixels before fitting, after orientation.
        mode: The file's kind of pixel, as Pillow names it; an array's is `array`.
        format: The file's format, as Pillow names it (`MPO` for a phone's); an array's is `array`.
    """

    pixels: Images
    digest: bytes
    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True)
class Refused:
    """An image that was not taken.

    Attributes:
        reason: A code of `REASONS`.
        sentence: The same for people, one sentence, plain ASCII, without anything of the content.
    """

    reason: str
    sentence: str


def refuse_unseen(content: bytes, params: DecodeParams) -> Refused | None:
    """Refuses by length and magic bytes alone: what never needs a decoder. Safe in any process."""
    try:
        _require_length(content, params)
        recognise(content, params.formats)
    except Refusal as refusal:
        return Refused(refusal.reason, refusal.sentence)
    return None


def decode(content: bytes, params: DecodeParams) -> Decoded | Refused:
    """Decodes one file's bytes. For untrusted bytes, in a process that may die (`decode_pool`).

    Never raises for any content, and never returns a partly filled image.
    """
    return _answer(lambda: _decode_file(content, params))


def decode_array(content: npt.NDArray[Any], params: DecodeParams) -> Decoded | Refused:
    """Takes pixels that a source hands over decoded: uint8 (H, W), (H, W, 1), (H, W, 3 or 4).

    A fourth channel is alpha. Limits on sides and pixels hold as for files.
    """
    return _answer(lambda: _decode_array(content, params))


def decode_packed(params: DecodeParams, content: bytes) -> bytes:
    """`pack(decode(...))`: the work of a decoding process."""
    return pack(decode(content, params))


def pack(result: Decoded | Refused) -> bytes:
    """A result as bytes without pickle, so that a captured decoder cannot run code elsewhere."""
    if isinstance(result, Refused):
        header: dict[str, Any] = {"reason": result.reason, "sentence": result.sentence}
        return _framed(header, b"")
    header = {
        "digest": result.digest.hex(), "width": result.width, "height": result.height,
        "mode": result.mode, "format": result.format,
    }  # fmt: skip
    return _framed(header, result.pixels.tobytes())


def unpack(data: bytes, params: DecodeParams) -> Decoded | Refused:
    """Reads what `pack` wrote, trusting none of it.

    Returns:
        The result; `decoder_died` where the bytes are not a result for these parameters.
    """
    try:
        (length,) = struct.unpack_from(">I", data)
        header = json.loads(data[4 : 4 + length])
        if set(header) == {"reason", "sentence"} and header["reason"] in REASONS:
            return Refused(header["reason"], _plain(str(header["sentence"])) + ".")
        pixels = np.frombuffer(data, dtype=np.uint8, offset=4 + length).reshape(params.shape)
        digest = bytes.fromhex(header["digest"])
        if len(digest) != 32:
            raise ValueError("the digest has another length")
        return Decoded(
            pixels=pixels, digest=digest, width=int(header["width"]), height=int(header["height"]),
            mode=_plain(str(header["mode"])), format=_plain(str(header["format"])),
        )  # fmt: skip
    except (struct.error, ValueError, KeyError, TypeError, RecursionError):
        return Refused("decoder_died", "Its decoder gave an answer that makes no sense.")


# --------------------------------------------------------------------------------------- decoding


def _answer(take: Callable[[], Decoded]) -> Decoded | Refused:
    try:
        return take()
    except Refusal as refusal:
        return Refused(refusal.reason, refusal.sentence)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow's own limit, which is above ours and so met first only inside `Image.open`.
        words = "Its header says more pixels than any decoder here takes."
        return Refused("too_many_pixels", words)
    except MemoryError:
        return Refused("out_of_memory", "Decoding it needs more memory than a decoder may have.")
    except Exception as error:  # Decoders raise anything at hostile bytes.
        words = _plain(str(error)) or "no reason given"
        return Refused("broken", f"Its decoder gave up: {type(error).__name__}, {words}.")


def _decode_file(content: bytes, params: DecodeParams) -> Decoded:
    _require_length(content, params)
    kind = recognise(content, params.formats)
    facts = inspect(kind, content)
    if facts.width is not None and facts.height is not None:
        _require_size(facts.width, facts.height, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=[kind]) as image:
            _require_size(*image.size, params)
            _require_one_picture(image, params)
            mode, name = image.mode, str(image.format)
            image.load()
            _require_known(image, facts)
            picture = _upright(image, _flat(image, params.background))
    return _finish(picture, params, mode=mode, name=name)


def _decode_array(content: npt.NDArray[Any], params: DecodeParams) -> Decoded:
    known = content.ndim == 2 or (content.ndim == 3 and content.shape[2] in (1, 3, 4))
    if content.dtype != np.uint8 or not known:
        shape = "x".join(map(str, content.shape))
        raise Refusal(
            "unsupported_mode", f"The array is {content.dtype} {shape}, not uint8 HxW or HxWxC."
        )
    _require_size(content.shape[1], content.shape[0], params)
    squeezed = content[:, :, 0] if content.shape[2:] == (1,) else content
    image = Image.fromarray(np.ascontiguousarray(squeezed))
    return _finish(_flat(image, params.background), params, mode="array", name="array")


def _finish(picture: Image.Image, params: DecodeParams, *, mode: str, name: str) -> Decoded:
    """Sets the channels, hashes, fits."""
    picture = picture.convert("L" if params.channels == 1 else "RGB")
    width, height = picture.size
    digest = hashlib.sha256(struct.pack(">III", height, width, params.channels))
    digest.update(picture.tobytes())
    pixels = np.array(_fit(picture, params), dtype=np.uint8).reshape(params.shape)
    return Decoded(
        pixels=pixels, digest=digest.digest(), width=width, height=height, mode=mode, format=name
    )


def _require_length(content: bytes, params: DecodeParams) -> None:
    if len(content) > params.max_bytes:
        raise Refusal(
            "too_many_bytes",
            f"The file has {len(content):,} bytes, more than the {params.max_bytes:,} allowed.",
        )


def _require_size(width: int, height: int, params: DecodeParams) -> None:
    if width * height > params.max_pixels or max(width, height) > params.max_side:
        raise Refusal(
            "too_many_pixels",
            f"Its header says {width} x {height} pixels, more than the {params.max_pixels:,} "
            f"pixels or {params.max_side:,} a side allowed.",
        )
    if min(width, height) < params.min_side:
        raise Refusal(
            "too_small",
            f"It has {width} x {height} pixels, less than the {params.min_side} a side allowed.",
        )


def _require_one_picture(image: Image.Image, params: DecodeParams) -> None:
    if params.first_frame or image.format == "MPO":
        return
    if getattr(image, "is_animated", False):
        raise Refusal(
            "several_pictures",
            f"The {image.format} file is animated or has several pages; set first_frame to take "
            "the first one.",
        )


def _require_known(image: Image.Image, facts: Facts) -> None:
    """Refuses the few files that Pillow decodes to other numbers than they mean."""
    if facts.deep_with_key:
        raise Refusal("unsupported_mode", "It is 16-bit RGB with a transparent colour.")
    white_is_zero = _tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
    if white_is_zero and image.mode[0] in "IF":
        raise Refusal("unsupported_mode", "It is a 16-bit or float TIFF with white as zero.")


def _upright(image: Image.Image, picture: Image.Image) -> Image.Image:
    """Applies EXIF orientation, if it is stated and valid; Pillow has done so to a TIFF."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Malformed EXIF is no reason to lose a picture.
        return picture
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


# ------------------------------------------------------------------------------------- conversion


def _flat(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The picture in mode L or RGB, opaque.

    Raises:
        Refusal: `unsupported_mode` or `value_range`.
    """
    convert = _CONVERSIONS.get(image.mode)
    if convert is None:
        raise Refusal("unsupported_mode", f"Its pixels are {image.mode}, which are not converted.")
    converted = convert(image)
    if converted.mode in ("L", "RGB"):
        return converted
    converted = converted.convert("RGBA")
    canvas = Image.new("RGB", converted.size, background)
    # Exact integer blending: alpha 0 gives the background, whatever colour hid there.
    canvas.paste(converted.convert("RGB"), mask=converted.getchannel("A"))
    return canvas


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("LA" if "transparency" in image.info else "L")


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGBA") if "transparency" in image.info else image


def _to(mode: str) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.convert(mode)


def _wide(image: Image.Image) -> Image.Image:
    """12 to 16 bits in `I;16*`: the high 8 of them, with a PNG's transparent value as alpha."""
    values = np.asarray(image)
    bits = _tag(image, TiffImagePlugin.BITSPERSAMPLE, 16)
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _integer(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65_535:
        raise Refusal("value_range", "Its integer pixels are not all within 0 to 65535.")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # Written so that NaN fails it.
    if not (values.min() >= 0 and values.max() <= 1):
        raise Refusal("value_range", "Its float pixels are not all within 0 to 1.")
    return Image.fromarray((values * np.float32(255) + np.float32(0.5)).astype(np.uint8))


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """A number from a TIFF's tags; the default for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


_CONVERSIONS: Final[Mapping[str, Callable[[Image.Image], Image.Image]]] = {
    "1": _grey, "L": _grey, "RGB": _rgb, "RGBX": _to("RGB"),
    "P": _to("RGBA"), "PA": _to("RGBA"), "LA": _to("LA"), "La": _to("LA"),
    "RGBA": _to("RGBA"), "RGBa": _to("RGBA"), "CMYK": _to("RGB"), "YCbCr": _to("RGB"),
    "I;16": _wide, "I;16L": _wide, "I;16B": _wide, "I;16N": _wide, "I": _integer, "F": _float,
}  # fmt: skip


# ---------------------------------------------------------------------------------------- fitting


def _fit(picture: Image.Image, params: DecodeParams) -> Image.Image:
    height, width, _ = params.shape
    if params.fit == "crop":
        picture = picture.crop(_centre(picture.width, picture.height, width, height))
    if params.fit != "pad":
        return _resampled(picture, width, height)
    inner_width, inner_height = _inside(picture.width, picture.height, width, height)
    canvas = Image.new("RGB", (1, 1), params.background).convert(picture.mode)
    canvas = canvas.resize((width, height), Image.Resampling.NEAREST)
    corner = (width - inner_width) // 2, (height - inner_height) // 2
    canvas.paste(_resampled(picture, inner_width, inner_height), corner)
    return canvas


def _centre(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int, int, int]:
    """The largest centred window with the proportions that are asked for (integers only)."""
    wide = max(1, min(width, (2 * height * to_width + to_height) // (2 * to_height)))
    high = max(1, min(height, (2 * width * to_height + to_width) // (2 * to_width)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _inside(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int]:
    """The largest size with the picture's proportions that is inside (integers only)."""
    wide = max(1, min(to_width, (2 * to_height * width + height) // (2 * height)))
    high = max(1, min(to_height, (2 * to_width * height + width) // (2 * width)))
    return wide, high


def _resampled(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Each axis by its own filter: one filter for both would blur or alias one of them."""
    picture = picture.resize((width, picture.height), _filter(picture.width, width))
    return picture.resize((width, height), _filter(picture.height, height))


def _filter(before: int, after: int) -> Image.Resampling:
    return Image.Resampling.BOX if after <= before else Image.Resampling.BICUBIC


# ---------------------------------------------------------------------------------------- packing


def _framed(header: Mapping[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text + body


def _plain(text: str) -> str:
    """A message in printable ASCII, short, and without what differs from run to run."""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x", text)
    text = "".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split()))
    return text[:200].rstrip(". ")
