"""Messages of protocol buffers, read field by field without a library: ONNX and sentencepiece files are such."""

from __future__ import annotations

from collections.abc import Iterator


def fields(held: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message: number, and bytes, or the number of a variable-length integer.

    Numbers of a fixed width come as their bytes, little end first.

    Raises:
        ValueError: It is no such message; or IndexError where it ends within a number.
    """
    at, end = 0, len(held)
    while at < end:
        key, at = _varint(held, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(held, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(held, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"it has a field of kind {kind}")
        if at + size > end:
            raise ValueError("it ends too early")
        yield key >> 3, held[at : at + size]
        at += size


def _varint(held: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = held[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("it has a number of more than 64 bits")
