"""Pictures for pages and documents: data URIs and contact sheets, the same bytes on every machine.

Source: ours.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from veilset.types import Images

_INK, _PAPER = (28, 39, 51), (255, 255, 255)
_GAP = 6


def as_picture(image: npt.NDArray[np.uint8]) -> Image.Image:
    """A Pillow picture ("L" or "RGB") of one uint8 (H, W, C) image, C = 1 or 3."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def png(picture: Image.Image) -> bytes:
    """Uncompressed PNG without metadata.

    Compressed streams differ between builds of zlib; stored ones do not.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """A `data:image/png;base64,...` address of one uint8 (H, W, C) image, C = 1 or 3."""
    return "data:image/png;base64," + base64.b64encode(png(as_picture(image))).decode("ascii")


def contact_sheet(rows: Sequence[tuple[str, Images]], scale: int = 1) -> Image.Image:
    """A sheet of labelled rows: one scheme a row, the same images in each column.

    Args:
        rows: Label and images, uint8 (N, H, W, C), C = 1 or 3; rows may differ in C but not in
            N, H, W.
        scale: Whole-number magnification without smoothing, 1 or more.

    Returns:
        An RGB picture.

    Raises:
        ValueError: No rows, rows of different shapes, or a scale below 1.
    """
    if not rows or len({images.shape[:3] for _, images in rows}) != 1:
        raise ValueError("a contact sheet needs rows of the same number and size of images")
    if scale < 1:
        raise ValueError(f"the scale of a contact sheet is 1 or more, not {scale}")
    count, height, width = (int(size) for size in rows[0][1].shape[:3])
    height, width = height * scale, width * scale
    font = ImageFont.load_default(size=14)
    left = _label_width([label for label, _ in rows], font)
    size = (left + count * (width + _GAP), _GAP + len(rows) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, (label, images) in enumerate(rows):
        top = _GAP + line * (height + _GAP)
        draw.text((_GAP, top + height / 2), label, fill=_INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            picture = as_picture(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + column * (width + _GAP), top))
    return sheet


def _label_width(labels: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return 2 * _GAP + int(max(font.getlength(label) for label in labels)) + _GAP
