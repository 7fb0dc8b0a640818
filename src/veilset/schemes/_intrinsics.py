"""Instructions that compiled loops need and that Numba cannot say; all of it is ours.

They check nothing, as the loops of `_kernels` that use them. LLVM has an equal for each on every
processor.
"""

from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

ACROSS: Final = 8
"""Blocks of 2 by 2 pixels that `split` and `join` take apart and put together in one go."""

SQUARE: Final = 16
"""Rows and columns that `to_lanes` and `from_lanes` turn in one go."""

_CHANNELS: Final = 3
_LINE: Final = 2 * ACROSS * _CHANNELS
_PLANE: Final = 2 * ACROSS * 2


def _fetch_code(typing: Any, values: Any, index: Any) -> tuple[Any, Any]:
    """For Numba: the types of `fetch`, and what writes its instruction."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        values, index = arguments
        place = _place(context, builder, signature.args[0], values, index, byte)
        takes = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], takes)
        # For reading, into the nearest cache, as data.
        builder.call(prefetch, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(values, index), generate


fetch: Final[Any] = intrinsic(_fetch_code)
"""`fetch(values, index)` tells the processor that a value will be read soon; changes nothing."""


def _trailing_zeros_code(typing: Any, word: Any) -> tuple[Any, Any]:
    """For Numba: the types of `trailing_zeros`, and what writes its instruction."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint64(word), generate


trailing_zeros: Final[Any] = intrinsic(_trailing_zeros_code)
"""`trailing_zeros(word)` is the place of the lowest bit that is set, of a uint64 that has one."""


def _split_code(
    typing: Any, flat: Any, upper: Any, lower: Any, table: Any, first: Any, apart: Any
) -> tuple[Any, Any]:
    """For Numba: the types of `split`, and what writes its instructions."""
    del typing
    # Out of both lines, one after the other: each block's upper two pixels, then its lower two.
    drawn = [
        [
            y * _LINE + (2 * k + x) * _CHANNELS + c
            for k in range(ACROSS) for y in range(2) for x in range(2)
        ]
        for c in range(_CHANNELS)
    ]  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixels, upper, lower, words, first, apart = arguments
        one, two = (
            _load(context, builder, signature.args[0], pixels, start, _bytes(_LINE))
            for start in (upper, lower)
        )
        for c in range(_CHANNELS):
            place = builder.add(first, builder.mul(apart, apart.type(c)))
            to = _place(context, builder, signature.args[3], words, place, _bytes(_PLANE))
            builder.store(builder.shuffle_vector(one, two, _order(drawn[c])), to, align=1)
        return context.get_dummy_value()

    return types.void(flat, upper, lower, table, first, apart), generate


split: Final[Any] = intrinsic(_split_code)
"""`split(flat, upper, lower, table, first, apart)` turns two lines of colour pixels into blocks.

Out of the 16 pixels from `flat[upper]` and the 16 from `flat[lower]` on, uint8, block k of channel
c, its upper two values and then its lower two, becomes the bytes of `table[first + apart * c + k]`,
uint32. No compiler finds the instructions for this in a loop: it is several times as fast.
"""


def _join_code(
    typing: Any, table: Any, first: Any, apart: Any, flat: Any, upper: Any, lower: Any
) -> tuple[Any, Any]:
    """For Numba: the types of `join`, and what writes its instructions."""
    del typing
    # Out of the blocks of the three channels, one channel after the other: each pixel's values.
    drawn = [
        [
            p % _CHANNELS * _PLANE + p // (2 * _CHANNELS) * 4 + y * 2 + p // _CHANNELS % 2
            for p in range(_LINE)
        ]
        for y in range(2)
    ]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, first, apart, pixels, upper, lower = arguments
        planes = [
            _load(
                context, builder, signature.args[0], words,
                builder.add(first, builder.mul(apart, apart.type(c))), _bytes(_PLANE),
            )
            for c in range(_CHANNELS)
        ]  # fmt: skip
        # An instruction shuffles two vectors of one length: the third plane is taken twice.
        two = builder.shuffle_vector(planes[0], planes[1], _order(range(2 * _PLANE)))
        third = builder.shuffle_vector(planes[2], planes[2], _order(range(2 * _PLANE)))
        for y, start in enumerate((upper, lower)):
            to = _place(context, builder, signature.args[3], pixels, start, _bytes(_LINE))
            builder.store(builder.shuffle_vector(two, third, _order(drawn[y])), to, align=1)
        return context.get_dummy_value()

    return types.void(table, first, apart, flat, upper, lower), generate


join: Final[Any] = intrinsic(_join_code)
"""`join(table, first, apart, flat, upper, lower)` undoes `split`."""


def _to_lanes_code(  # noqa: PLR0917
    typing: Any, rows: Any, starts: Any, lane: Any, column: Any, lanes: Any, place: Any, apart: Any
) -> tuple[Any, Any]:
    """For Numba: the types of `to_lanes`, and what writes its instructions."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, starts, lane, column, lanes, place, apart = arguments
        word = ir.IntType(64).as_pointer()
        lines = []
        for k in range(SQUARE):
            which = builder.add(lane, lane.type(k))
            start = _load(context, builder, signature.args[1], starts, which, word)
            at = builder.add(start, column)
            lines.append(_load(context, builder, signature.args[0], rows, at, _words(32)))
        for k, line in enumerate(_turned(builder, lines)):
            at = builder.add(place, builder.mul(apart, apart.type(k)))
            to = _place(context, builder, signature.args[4], lanes, at, _words(32))
            builder.store(line, to, align=1)
        return context.get_dummy_value()

    return types.void(rows, starts, lane, column, lanes, place, apart), generate


to_lanes: Final[Any] = intrinsic(_to_lanes_code)
"""`to_lanes(rows, starts, lane, column, lanes, place, apart)` turns rows into columns.

Value i of 16 from `rows[starts[lane + k] + column]` on, uint32, `starts` being uint64, becomes
`lanes[place + apart * i + k]`, for k up to 15.
"""


def _from_lanes_code(  # noqa: PLR0917
    typing: Any, lanes: Any, place: Any, apart: Any, mask: Any, rows: Any, start: Any, length: Any
) -> tuple[Any, Any]:
    """For Numba: the types of `from_lanes`, and what writes its instructions."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, place, apart, mask, rows, start, length = arguments
        lines = []
        for k in range(SQUARE):
            at = builder.add(place, builder.mul(apart, apart.type(k)))
            lines.append(_load(context, builder, signature.args[0], lanes, at, _words(32)))
        one = builder.insert_element(
            ir.Constant(lines[0].type, ir.Undefined), mask, ir.IntType(32)(0)
        )
        masks = builder.shuffle_vector(one, one, _order([0] * SQUARE))
        for k, line in enumerate(_turned(builder, lines)):
            at = builder.add(start, builder.mul(length, length.type(k)))
            to = _place(context, builder, signature.args[4], rows, at, _words(16))
            kept = builder.and_(line, masks)
            builder.store(builder.trunc(kept, ir.VectorType(ir.IntType(16), SQUARE)), to, align=1)
        return context.get_dummy_value()

    return types.void(lanes, place, apart, mask, rows, start, length), generate


from_lanes: Final[Any] = intrinsic(_from_lanes_code)
"""`from_lanes(lanes, place, apart, mask, rows, start, length)` turns columns into rows.

`lanes[place + apart * i + k] & mask`, uint32, becomes `rows[start + length * k + i]`, uint16, for i
and k up to 15.
"""


def _turned(builder: Any, lines: list[Any]) -> list[Any]:
    """A square's columns, from its rows: halves of ever larger blocks change places."""
    size = 1
    while size < len(lines):
        turned = list(lines)
        for k in range(len(lines)):
            if k & size:
                continue
            places = [i + len(lines) - size if i & size else i for i in range(len(lines))]
            turned[k] = builder.shuffle_vector(lines[k], lines[k + size], _order(places))
            places = [i + len(lines) if i & size else i + size for i in range(len(lines))]
            turned[k + size] = builder.shuffle_vector(lines[k], lines[k + size], _order(places))
        lines, size = turned, 2 * size
    return lines


def _place(
    context: Any, builder: Any, kind: Any, values: Any, index: Any, pointer: ir.PointerType
) -> Any:
    """Where `values[index]` lies, as a pointer of this type."""
    data = context.make_array(kind)(context, builder, values).data
    return builder.bitcast(builder.gep(data, [index]), pointer)


def _load(
    context: Any, builder: Any, kind: Any, values: Any, index: Any, pointer: ir.PointerType
) -> Any:
    """What such a pointer to `values[index]`, wherever it lies, points to."""
    return builder.load(_place(context, builder, kind, values, index, pointer), align=1)


def _bytes(count: int) -> ir.PointerType:
    return ir.VectorType(ir.IntType(8), count).as_pointer()


def _words(bits: int) -> ir.PointerType:
    return ir.VectorType(ir.IntType(bits), SQUARE).as_pointer()


def _order(places: Sequence[int]) -> ir.Constant:
    """Which of two vectors' elements come to each place."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
