"""Functions that Numba compiles when they are first called, and keeps on disk."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compiles a function of arrays and integers for this machine at its first call.

    What was compiled is kept beside the source, or in the user's cache folder (or in the folder
    that the environment variable `NUMBA_CACHE_DIR` names), so that only the first process pays for
    it; where none of them can be written, every process compiles anew. The interpreter's lock is
    released while it runs. `function.py_func` is the function as it was written.
    """
    try:
        return cast(F, njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # Numba found no folder for its cache
        return cast(F, njit(nogil=True, error_model="numpy")(function))
