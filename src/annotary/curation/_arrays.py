"""Columns of Arrow as arrays of NumPy, and the other way, without copies where that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.curation.columns import as_text

if TYPE_CHECKING:
    import pyarrow as pa


class Buffer(NamedTuple):
    """Texts in Arrow's layout.

    Attributes:
        data: uint8[bytes], UTF-8.
        offsets: int[n + 1]; text k is `data[offsets[k]:offsets[k + 1]]`.
        is_valid: bool[n], whether there is a text; None where all are.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64] | npt.NDArray[np.int32]
    is_valid: npt.NDArray[np.bool_] | None


def buffer_of(array: pa.Array) -> Buffer:
    """The texts of a column, without a copy where they have Arrow's layout of strings."""
    array = as_text(array)
    wide = str(array.type) == "large_string"
    _, offsets, data = array.buffers()
    kind = np.int64 if wide else np.int32
    if offsets is None or not offsets.size:
        starts: Any = np.zeros(len(array) + 1, kind)
    else:
        starts = np.frombuffer(offsets, kind)[array.offset : array.offset + len(array) + 1]
    text = (
        np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    )
    is_valid = None
    if array.null_count:
        is_valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    return Buffer(text, starts, is_valid)


def column_of(values: npt.NDArray[Any]) -> pa.Array:
    """An array of numbers, or of whether something is so, as a column.

    It is what `pa.array` gives, which looks first whether it was given something of pandas, and imports that if it is
    installed: a third of a second and 60 MB in every process.
    """
    import pyarrow as pa

    if values.dtype == np.bool_:
        data = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(data)])
    kind = pa.from_numpy_dtype(values.dtype)
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [None, data])
