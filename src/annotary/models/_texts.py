"""What a model makes of texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Texts(NamedTuple):
    """Texts as a model sees them.

    Attributes:
        vectors: float32[n, d], unit length.
        is_truncated: bool[n]; whether the end of the text did not fit in and was not read.
    """

    vectors: npt.NDArray[np.float32]
    is_truncated: npt.NDArray[np.bool_]
