"""OpenVINO: runs ONNX files on processors, in bf16 where they have it."""

from __future__ import annotations

import queue
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import MissingExtra, ModelError
from annotary.runtime._decision import Decision, decide, offers
from annotary.runtime._options import (
    Choice,
    Inputs,
    RuntimeOptions,
    best_batch,
    first_input,
    in_fixed_parts,
)
from annotary.runtime._processor import available_cores, precision_of, processor_features

MOST_STREAMS = 8
"""Every stream has memory of its own for what stands between the layers."""

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoSession:
    """One ONNX file in OpenVINO, ready to run. Safe to call from several threads; they wait for a free stream.

    Args:
        path: The ONNX file.
        options: How it runs.
        decision: What was decided of it; decided here, for OpenVINO alone, when nothing is given.
        origin: The file that messages name, where `path` is a copy of it that will go.
        converted: A network of `convert_torch` in place of the file; `path` is then for messages alone.

    Raises:
        MissingExtra: OpenVINO is not installed.
        ModelError: The file is missing or is no network that OpenVINO can run.
        UsageError: OpenVINO cannot do what the options ask for.
    """

    def __init__(
        self,
        path: Path,
        options: RuntimeOptions,
        decision: Decision | None = None,
        *,
        origin: Path | None = None,
        converted: Any = None,
    ) -> None:
        openvino = _library()
        self._path = origin or path
        if converted is None and not path.is_file():
            raise ModelError(f"{path} is missing")
        if decision is None:
            own = replace(options, runtime="openvino")
            decision = decide(own, offers(precision_of(path), has_torch=False))
        choice = _choice(openvino, options, decision)
        try:
            core = openvino.Core()
            model = core.read_model(path) if converted is None else converted
            shape = tuple(
                axis.get_length() if axis.is_static else None
                for axis in model.input(0).partial_shape
            )
            self._compiled = core.compile_model(model, "CPU", _settings(choice))
            # The first call of this makes a table in a way that waits for ever when two threads are in it.
            self._numbers = {
                _name(port): port.get_element_type().to_dtype() for port in self._compiled.inputs
            }
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"OpenVINO cannot load {self._path}: {_reason(error)}") from error
        if converted is not None:
            choice = replace(choice, reason=f"{choice.reason}; taken from the weights for torch")
        self.choice = replace(choice, batch_size=best_batch("cpu", shape))
        self.fixed_batch: int | None = (shape[0] or None) if shape else None
        self.inputs: tuple[str, ...] = tuple(self._numbers)
        self._ports = {_name(port): port for port in self._compiled.outputs}
        self.outputs: tuple[str, ...] = tuple(self._ports)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(choice.streams):
            self._idle.put(self._compiled.create_infer_request())

    def run(
        self, batch: npt.NDArray[np.generic], output: str, beside: Inputs | None = None
    ) -> npt.NDArray[np.float32]:
        """One output for a batch; a network that takes a fixed number of images gets so many at a time.

        Args:
            batch: What goes into the first input that is not named in `beside`.
            output: Its name.
            beside: What goes into further inputs, by name.

        Raises:
            ModelError: The batch does not fit the network.
        """
        if output not in self.outputs:
            raise ModelError(f"{self._path} has no output {output!r}")
        first = first_input(self.inputs, beside)
        for name, rows in {first: batch, **(beside or {})}.items():
            takes = self._numbers.get(name)
            if rows.dtype != takes:  # it would be converted without a word
                raise ModelError(
                    f"OpenVINO cannot run {self._path}: it takes {takes}, but got {rows.dtype}"
                )
        request = self._idle.get()
        try:
            results = []
            for part in in_fixed_parts(batch, first, beside, self.fixed_batch):
                rows_in_order = [np.ascontiguousarray(part[name]) for name in self.inputs]
                request.infer(rows_in_order, share_inputs=True)
                # The request's own memory is written again by the next one.
                results.append(
                    np.array(request.get_tensor(self._ports[output]).data, dtype=np.float32)
                )
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise ModelError(f"OpenVINO cannot run {self._path}: {_reason(error)}") from error
        finally:
            self._idle.put(request)
        return np.concatenate(results)[: len(batch)]


def convert_torch(module: Any, example: Any, output: str) -> Any:
    """A network of torch as one of OpenVINO, for a session.

    Args:
        module: Takes one tensor and gives one; it must not look at the values in it.
        example: A tensor that it takes; the number of images is left open, the other axes are fixed.
        output: What the output is to be called.

    Raises:
        MissingExtra: OpenVINO is not installed.
        ModelError: OpenVINO cannot take it; the message says why.
    """
    import torch

    openvino = _library()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that nothing else knows
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter(
                "ignore"
            )  # tracing warns of every axis that is fixed, as it should be
            trace: Any = torch.jit.trace
            traced = trace(module.eval(), example, check_trace=False)
            model = openvino.convert_model(traced)
        model.reshape({0: openvino.PartialShape([-1, *example.shape[1:]])})
        model.outputs[0].get_tensor().set_names({output})
    except Exception as error:  # whatever its parts raise
        raise ModelError(
            f"OpenVINO cannot take the network from torch: {_reason(error)}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return model


def _choice(openvino: Any, options: RuntimeOptions, decision: Decision) -> Choice:
    cores = options.threads or available_cores()
    streams = streams_of(cores)
    said = "as asked" if options.threads else "all that this process may use"
    reason = (
        f"{decision.reason}; {cores} {'core' if cores == 1 else 'cores'}, {said}, {streams} streams"
    )
    if decision.precision == "int8":
        reason += f", the rest in {_rest()}"
    title = f"OpenVINO {openvino.__version__.split('-')[0]}"
    return Choice(title, "cpu", decision.precision, streams, max(1, cores // streams), reason)


def _name(port: Any) -> str:
    """What the file calls an output. Values that are the same share their names here, so it may have several."""
    own: str = port.get_node().get_friendly_name().rsplit("/sink_port", 1)[0]
    names = port.get_names()
    return own if own in names or not names else min(names)


def streams_of(cores: int) -> int:
    """How many streams share so many cores: a few on large machines, and so many that few cores are left over."""
    least = min(cores, MOST_STREAMS // 2)
    return max(range(least, min(cores, MOST_STREAMS) + 1), key=lambda s: (cores // s * s, s))


def _settings(choice: Choice) -> dict[str, Any]:
    precision = _rest() if choice.precision == "int8" else choice.precision
    return {
        "NUM_STREAMS": choice.streams,
        "INFERENCE_NUM_THREADS": choice.streams * choice.threads,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # Others may use the cores, too: the decoders of the same run do.
        "ENABLE_CPU_PINNING": False,
    }


def _rest() -> str:
    """What a network in 8-bit integers computes in where it does not round."""
    return "bf16" if "bf16" in processor_features() else "fp32"


def _library() -> Any:
    """OpenVINO, without the package that would send usage data to its makers.

    `openvino_telemetry` is installed with it and used by its converter and by NNCF unless it cannot be imported; then
    they go on without. None in `sys.modules` is Python's way to say that a module cannot be imported.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("OpenVINO", "openvino") from error
    return openvino


def _reason(error: Exception) -> str:
    """The line of OpenVINO's message that says what is wrong; before it stands where in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    where = ("Exception from", "Check '", "Loading input model")
    told = [line for line in lines if line and not line.startswith(where)]
    return (told or [type(error).__name__])[0][:300]
