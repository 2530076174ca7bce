"""Static quantisation of an ONNX file: 8-bit integers, with ranges from real photos.

The file that comes out holds `QuantizeLinear` and `DequantizeLinear` around what is to be computed in integers, which
both ONNX Runtime and OpenVINO run. NNCF makes it (Apache-2.0, github.com/openvinotoolkit/nncf), because its files run
twice as fast in OpenVINO as those of `onnxruntime.quantization`, which leaves the products of a transformer's layers
between floats, and because it moves the outliers of activations into the weights (Xiao et al., "SmoothQuant", 2023).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import MissingExtra, ModelError
from annotary.export._graphs import (
    drop_clips,
    make_unsigned,
    read_model,
    store_biases,
    tail_of,
)
from annotary.runtime import is_transformer
from annotary.runtime.onnx_runtime import fold_constants


def quantise(
    source: Path, target: Path, photos: Callable[[], Iterator[npt.NDArray[Any]]], count: int
) -> None:
    """Write a file's network in 8-bit integers.

    Args:
        source: An ONNX file that computes in floats.
        target: Where the other one goes.
        photos: Gives the photos, prepared, as batches of one; asked several times.
        count: How many there are.

    Raises:
        MissingExtra: NNCF or onnx is not installed.
        ModelError: The network cannot be quantised.
    """
    nncf = _library()
    import onnx
    from nncf.quantization.advanced_parameters import QuantizationParameters

    # NNCF stumbles over weights that are stored in one number type and widened when the file is loaded.
    folded = target.with_suffix(".folded")
    fold_constants(source, folded)
    model = read_model(folded)
    folded.unlink()
    entry = model.graph.input[0].name
    # Weights that are listed among the inputs, as old files do, are no images.
    weights = {tensor.name for tensor in model.graph.initializer}
    entry = next((value.name for value in model.graph.input if value.name not in weights), entry)
    kind = nncf.ModelType.TRANSFORMER if is_transformer(source) else None
    with _quiet():
        try:
            made = nncf.quantize(
                model,
                nncf.Dataset(_Again(photos), lambda batch: {entry: np.ascontiguousarray(batch)}),
                model_type=kind,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=count,
                # One range a tensor: ONNX Runtime's integer convolutions know no other.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    activations_quantization_params=QuantizationParameters(per_channel=False)
                ),
                # The last layers cost next to nothing, and every rounding in them is seen in the scores.
                ignored_scope=nncf.IgnoredScope(names=tail_of(model), validate=False),
            )
        except Exception as error:  # whatever it does not know of a graph, it meets with any error
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{source} cannot be quantised: {told}") from error
    if kind is None:
        # For ONNX Runtime's integer convolutions. Products of matrices are as fast there, and 5 % faster in OpenVINO,
        # between signed numbers.
        make_unsigned(made)
    drop_clips(made)
    store_biases(made)
    onnx.save(made, target)


class _Again:
    """An iterable that begins anew every time."""

    def __init__(self, photos: Callable[[], Iterator[npt.NDArray[Any]]]) -> None:
        self._photos = photos

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return self._photos()


def _library() -> Any:
    """NNCF, without the telemetry that it sends to its makers where it can.

    It does so through `openvino_telemetry`; None in `sys.modules` is Python's way to say that it cannot be imported.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    # A second way, of its own: what it sets for its own tests.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with _quiet():
            import nncf
    except ImportError as error:
        raise MissingExtra("Quantising a model", "export") from error
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF prints bars and notes for those who develop networks."""
    logger = logging.getLogger("nncf")
    level = logger.level
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)
