"""Where a detector sees what it was asked for, before anything is chosen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Located(NamedTuple):
    """Every place that a detector looked at, in the images of a batch.

    Attributes:
        boxes: float32[b, n, 4], `xyxy`, 0..1 of the network's input, with padding where the images were padded.
        logits: float32[b, n, q], one for each query; the sigmoid is a probability, and queries do not compete.
    """

    boxes: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
