"""What decoding processes are made to do in tests; light, because each of them imports it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def act(content: bytes) -> bytes:
    """Does what the content says; by default answers with it."""
    word, _, rest = content.partition(b":")
    deed = DEEDS.get(word)
    answer = deed(rest) if deed is not None else None
    return b"did " + content if answer is None else answer


def once(folder: str, content: bytes) -> bytes:
    """Dies at the first attempt at `first`, and at no later one."""
    mark = Path(folder) / "mark"
    if content == b"first" and not mark.exists():
        mark.mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    return b"did " + content


def look(_: bytes) -> bytes:
    modules = b"torch" if "torch" in sys.modules else b"no torch"
    return modules + b" " + b",".join(name.encode() for name in sorted(os.environ))


def write(rest: bytes) -> bytes:
    with Path(rest.decode()).open("wb", buffering=0) as file:
        return str(file.write(b"x")).encode()


def fail(_: bytes) -> bytes:
    raise ValueError("a bug in a decoder")


def spin(_: bytes) -> bytes:
    while True:
        pass


class Unloadable:
    """Work that a worker cannot even load."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (7,)


def fail_to_load() -> Callable[[bytes], bytes]:
    return Unloadable()  # type: ignore[return-value]


DEEDS: dict[bytes, Callable[[bytes], bytes | None]] = {
    b"kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),  # type: ignore[func-returns-value]
    b"crash": lambda _: os.kill(os.getpid(), signal.SIGSEGV),  # type: ignore[func-returns-value]
    b"raise": fail,
    b"exit": lambda _: os._exit(3),
    b"hang": lambda _: time.sleep(60),  # type: ignore[func-returns-value]
    b"spin": spin,
    b"hoard": lambda _: bytes(len(bytearray(8 << 30))),
    b"flood": lambda _: bytes(8 << 20),
    b"slow": lambda _: time.sleep(0.3),  # type: ignore[func-returns-value]
    b"look": look,
    b"write": write,
}


def deadly_decode(params: object, content: bytes) -> bytes:
    """A decoder that some contents kill."""
    from veilset.data.decode import DecodeParams, decode_packed

    if content.endswith(b"kill this decoder"):
        os.kill(os.getpid(), signal.SIGKILL)
    if content.endswith(b"hang this decoder"):
        time.sleep(60)
    assert isinstance(params, DecodeParams)
    return decode_packed(params, content)
