"""What an image file says of itself before anything decodes it: type, size, completeness.

Pure Python over the file's bytes: it allocates nothing that the file asks for, so it may look at
untrusted bytes in any process. The type comes from magic bytes, never from a name. Checks of
completeness are here because decoders are lenient: Pillow accepts a PNG without its last bytes, and
libjpeg invents what is missing of a JPEG. All of it is ours, after the formats' specifications.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Format = Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]
"""Names as Pillow has them; PPM is the family of PBM, PGM and PPM in binary form."""

FORMATS: Final[tuple[Format, ...]] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

_MAGIC: Final[tuple[tuple[re.Pattern[bytes], Format], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(re.escape(_PNG_SIGNATURE)), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"BM"), "BMP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"P[4-6][\s#]"), "PPM"),
)

_OTHERS: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (re.compile(rb"....ftyp", re.DOTALL), "an HEIC, AVIF or video file"),
    (re.compile(rb"\0\0\0\x0cjP |\xff\x4f\xff\x51"), "a JPEG 2000 file"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL file"),
    (re.compile(rb"\0\0\x01\0"), "an icon"),
    (re.compile(rb"8BPS"), "a Photoshop file"),
    # In text form a number that was cut short is a number still.
    (re.compile(rb"P[1-3][\s#]"), "a PPM file in text form"),
    (re.compile(rb"P[7Ff]\s"), "a PAM or PFM file"),
    (re.compile(rb"%PDF|%!PS"), "a PDF or PostScript file"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ"), "an archive"),
    (re.compile(rb"\x93NUMPY"), "a NumPy file"),
    (re.compile(rb"\xef?\xbb?\xbf?\s*<(!doctype html|html)", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\xef?\xbb?\xbf?\s*<(\?xml|svg)", re.IGNORECASE), "an XML or SVG file"),
)

_TEXT: Final = frozenset(b"\t\n\r" + bytes(range(32, 127)))

# In a scan, FF is followed by 00 (a stuffed byte), D0..D7 (restart), another FF (fill) or a marker.
_JPEG_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_SIZES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error of the program
    """Why a file is not taken; caught where it is turned into a row of the quarantine.

    Attributes:
        reason: A code, one lower-case word.
        sentence: The same for people, one sentence.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


@dataclass(frozen=True)
class Facts:
    """What the header of a file says.

    Attributes:
        width: Pixels, or None where only Pillow reads them (lazily: TIFF, PPM).
        height: Likewise.
        deep_with_key: It is a 16-bit RGB PNG with a transparent colour.
    """

    width: int | None = None
    height: int | None = None
    deep_with_key: bool = False


def recognise(content: bytes, allowed: tuple[Format, ...] = FORMATS) -> Format:
    """The type of a file by its first bytes.

    Raises:
        Refusal: `empty`, `not_an_image` or `format_not_allowed`.
    """
    if not content:
        raise Refusal("empty", "The file has no bytes.")
    for magic, name in _MAGIC:
        if magic.match(content):
            if name not in allowed:
                raise Refusal("format_not_allowed", f"It is a {name} file, which is not allowed.")
            return name
    for magic, words in _OTHERS:
        if magic.match(content):
            raise Refusal("format_not_allowed", f"It begins as {words}, which is not allowed.")
    words = "text" if _TEXT.issuperset(content[:512]) else "no known image format"
    raise Refusal("not_an_image", f"It begins as {words}, whatever its name says.")


def inspect(kind: Format, content: bytes) -> Facts:
    """Reads a file's header, and refuses it if its end is missing.

    Bytes after the end are not looked at. Whether a BMP, GIF, TIFF or PPM is whole is left to
    Pillow, which notices.

    Raises:
        Refusal: `incomplete`, or `broken` where the header is malformed, a PNG's checksum disagrees
            or a JPEG has bytes that belong to nothing.
    """
    try:
        return _INSPECTORS[kind](content)
    except (struct.error, IndexError):
        raise Refusal("incomplete", f"The {kind} file ends before its header does.") from None


def _png_facts(content: bytes) -> Facts:
    """Walks over all chunks up to IEND, and verifies each checksum."""
    width, height = _png_size(content)
    at, transparent, name = len(_PNG_SIGNATURE), False, b""
    view = memoryview(content)
    while name != b"IEND":
        if at + 12 > len(content):
            raise Refusal("incomplete", f"The PNG file ends at byte {len(content)} without IEND.")
        length, name = struct.unpack_from(">I4s", content, at)
        stop = at + 12 + length
        if stop > len(content):
            raise Refusal("incomplete", f"The PNG file ends inside the chunk at byte {at}.")
        if zlib.crc32(view[at + 4 : stop - 4]) != int.from_bytes(view[stop - 4 : stop], "big"):
            raise Refusal("broken", f"The PNG chunk at byte {at} disagrees with its checksum.")
        transparent |= name == b"tRNS"
        at = stop
    deep = content[24] == 16 and content[25] == 2
    return Facts(width, height, deep_with_key=deep and transparent)


def _png_size(content: bytes) -> tuple[int, int]:
    length, name, width, height = struct.unpack_from(">I4sII", content, 8)
    if name != b"IHDR" or length != 13:
        raise Refusal("broken", "The PNG file does not begin with its header chunk.")
    return width, height


def _bmp_facts(content: bytes) -> Facts:
    (header,) = struct.unpack_from("<I", content, 14)
    if header == 12:
        return Facts(*struct.unpack_from("<HH", content, 18))
    width, height = struct.unpack_from("<ii", content, 18)
    return Facts(width, abs(height))  # A negative height means rows from top to bottom.


def _gif_facts(content: bytes) -> Facts:
    return Facts(*struct.unpack_from("<HH", content, 6))


def _webp_facts(content: bytes) -> Facts:
    kind = content[12:16]
    if len(content) < max(30, 8 + int.from_bytes(content[4:8], "little")):
        raise Refusal("incomplete", "The WEBP file is shorter than its header says.")
    if kind == b"VP8X":
        wide, high = content[24:27], content[27:30]
        return Facts(int.from_bytes(wide, "little") + 1, int.from_bytes(high, "little") + 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return Facts((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return Facts(width & 0x3FFF, height & 0x3FFF)
    raise Refusal("broken", "The WEBP file does not begin with an image chunk.")


def _no_facts(content: bytes) -> Facts:
    del content
    return Facts()


def _jpeg_facts(content: bytes) -> Facts:
    """Walks over all markers up to EOI."""
    at, facts = 2, Facts()
    while True:
        at, code = _jpeg_marker(content, at)
        if code == _JPEG_END:
            break
        if code in _JPEG_ALONE:
            continue
        (length,) = struct.unpack_from(">H", content, at)
        if code in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", content, at + 3)
            facts = Facts(width, height)
        at += length
        if code == _JPEG_SCAN:
            at = _jpeg_scan_end(content, at)
    if facts.width is None:
        raise Refusal("broken", "The JPEG file has no picture in it.")
    return facts


def _jpeg_marker(content: bytes, at: int) -> tuple[int, int]:
    """The code of the marker at a place, and the place after it; fill bytes are skipped."""
    start = at
    while content[at] == 0xFF:
        at += 1
    code = content[at]
    if at == start or code in range(0x02, 0xC0) or code in (0x00, 0xD8):
        raise Refusal("broken", f"The JPEG file has no valid marker at byte {start}.")
    return at + 1, code


def _jpeg_scan_end(content: bytes, at: int) -> int:
    found = _JPEG_MARKER.search(content, at)
    if found is None:
        raise Refusal("incomplete", f"The JPEG file ends at byte {len(content)} inside its pixels.")
    return found.start()


_INSPECTORS: Final[dict[Format, Callable[[bytes], Facts]]] = {
    "JPEG": _jpeg_facts, "PNG": _png_facts, "WEBP": _webp_facts, "BMP": _bmp_facts,
    "GIF": _gif_facts, "TIFF": _no_facts, "PPM": _no_facts,
}  # fmt: skip
