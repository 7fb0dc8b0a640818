"""Protection schemes, one a file, found by the registry.

`from veilset.schemes import VisualMixer` gives a scheme's class; only that file is imported.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from veilset.schemes.registry import SCHEMES  # noqa: PLC0415 - the registry imports this package

    wanted = name.lower()
    for known in SCHEMES.names():
        if known.replace("_", "") == wanted:
            found = SCHEMES[known]
            if found.__name__ == name:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
