"""Names of files, classes and splits as text that any table, page or terminal can hold."""

import re

from veilset.data.sources.base import Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

# "values.parquet" is no validation split, whereas train and test begin few other words.
_FILE_SPLIT = re.compile(r"(train|test|val(?:id(?:ation)?)?(?![a-z]))")


def printable(name: bytes | str) -> str:
    r"""A name as printable text, different for different names.

    Printable characters stay. A byte that is not UTF-8 becomes `\xNN`, any other character
    (control, surrogate, text direction, exotic space) `\uNNNN` or `\UNNNNNNNN`, and a backslash
    `\\`, so that no two names get one text.

    Args:
        name: Raw bytes of a file name, or text that may hold escaped bytes (surrogates).
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def split_of(name: str) -> Split | None:
    """The split that a word names (train, val, valid, validation, dev, test, ...), or None."""
    return _SPLITS.get(name.strip().lower())


def split_of_file(name: str) -> Split | None:
    """The split that a file name begins with: train*, val*, validation*, test*; or None."""
    found = _FILE_SPLIT.match(name.lower())
    return split_of(found.group(1)) if found else None


def group_of(pattern: str, name: str) -> str:
    """The group that a name tells: the pattern's first bracket (or whole match), "" if none.

    Args:
        pattern: A regular expression, searched for anywhere in the name; "" gives "".
        name: The item's name.
    """
    found = re.search(pattern, name) if pattern else None
    if found is None:
        return ""
    return (found.group(1) if found.re.groups else found.group()) or ""


def checked_pattern(pattern: str) -> str:
    """The pattern itself.

    Raises:
        ValueError: It is no regular expression.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"it must be a regular expression ({error})") from None
    return pattern


def _escaped(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
