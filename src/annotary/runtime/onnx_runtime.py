"""ONNX Runtime: runs ONNX files without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import ModelError, UsageError
from annotary.runtime._decision import Decision, decide, offers
from annotary.runtime._options import (
    Choice,
    Inputs,
    RuntimeOptions,
    best_batch,
    first_input,
    in_fixed_parts,
)
from annotary.runtime._processor import available_cores, precision_of


class OnnxSession:
    """One ONNX file, ready to run. Safe to call from several threads.

    On a CPU every call works on one core, and several calls run side by side: images are independent, so this uses the
    cores without the waiting that splitting each operation among them brings.

    Args:
        path: The ONNX file.
        options: How it runs.
        decision: What was decided of it; decided here, for ONNX Runtime alone, when nothing is given.
        origin: The file that messages name, where `path` is a copy of it that will go.

    Raises:
        ModelError: The file is missing or is no network that ONNX Runtime can run.
        UsageError: ONNX Runtime cannot do what the options ask for.
    """

    def __init__(
        self,
        path: Path,
        options: RuntimeOptions,
        decision: Decision | None = None,
        *,
        origin: Path | None = None,
    ) -> None:
        ort = _library()
        self._path = origin or path
        if not path.is_file():
            raise ModelError(f"{path} is missing")
        if decision is None:
            own = replace(options, runtime="onnxruntime")
            decision = decide(own, offers(precision_of(path), has_torch=False))
        wanted = _choice(options, decision)
        providers = [*_PROVIDERS[wanted.device], "CPUExecutionProvider"]
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = wanted.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(path, settings, providers=providers)
        except _errors() as error:
            told = _first_line(error)
            raise ModelError(f"ONNX Runtime cannot load {self._path}: {told}") from error
        entries = self._session.get_inputs()
        if not entries:
            raise ModelError(f"{self._path} has no input")
        entry = entries[0]
        shape = tuple(axis if isinstance(axis, int) else None for axis in entry.shape)
        made = _made_true(wanted, self._session.get_providers(), options)
        self.choice = replace(made, batch_size=best_batch(made.device, shape))
        self.inputs: tuple[str, ...] = tuple(entry.name for entry in entries)
        self.fixed_batch: int | None = (shape[0] or None) if shape else None
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

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
        first = first_input(self.inputs, beside)
        try:
            results = [
                self._session.run([output], part)[0]
                for part in in_fixed_parts(batch, first, beside, self.fixed_batch)
            ]
        except _errors() as error:
            told = _first_line(error)
            raise ModelError(f"ONNX Runtime cannot run {self._path}: {told}") from error
        return np.concatenate(results)[: len(batch)].astype(np.float32, copy=False)


_PROVIDERS = {"cuda": ["CUDAExecutionProvider"], "cpu": []}
"""ONNX Runtime's own names of devices."""


def fold_constants(source: Path, target: Path) -> None:
    """Write a copy of a network in which everything that is always the same is worked out, in plain ONNX.

    Raises:
        ModelError: It is no network that ONNX Runtime can run.
    """
    ort = _library()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(target)
    try:
        # A product plus what is computed elsewhere would become one operation, whose bias NNCF then looks for in vain.
        ort.InferenceSession(
            source,
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["MatMulAddFusion"],
        )
    except _errors() as error:
        raise ModelError(f"ONNX Runtime cannot load {source}: {_first_line(error)}") from error


def offers_cuda() -> tuple[bool, str]:
    """Whether ONNX Runtime as installed can use a GPU, and if not, why."""
    ort = _library()
    if "CUDAExecutionProvider" in ort.get_available_providers():
        return True, ""
    return False, f"ONNX Runtime {ort.__version__} as installed offers no CUDA"


def _choice(options: RuntimeOptions, decision: Decision) -> Choice:
    title = f"ONNX Runtime {_library().__version__}"
    if decision.device == "cuda":
        said = "as asked" if options.device == "cuda" else "this build of ONNX Runtime offers CUDA"
        threads = options.threads or available_cores()
        return Choice(title, "cuda", decision.precision, 1, threads, said)
    why = "as asked" if options.device == "cpu" else "this build of ONNX Runtime offers no GPU"
    return _on_cpu(options, decision.precision, why)


def _on_cpu(options: RuntimeOptions, precision: str, why: str) -> Choice:
    cores = options.threads or available_cores()
    said = "as asked" if options.threads else "all that this process may use"
    reason = f"{why}; {cores} {'core' if cores == 1 else 'cores'}, {said}, one stream each"
    return Choice(f"ONNX Runtime {_library().__version__}", "cpu", precision, cores, 1, reason)


def _made_true(wanted: Choice, providers: Sequence[str], options: RuntimeOptions) -> Choice:
    """The choice as it came out: ONNX Runtime falls back to the processor where a GPU cannot be used.

    Raises:
        UsageError: The GPU was asked for.
    """
    if all(name in providers for name in _PROVIDERS[wanted.device]):
        return wanted
    if options.device == wanted.device:
        raise UsageError(
            f"{wanted.library} offers {wanted.device}, but cannot use it here; are its driver and"
            " libraries installed?"
        )
    why = f"{wanted.device} cannot be used here, although it is offered"
    return _on_cpu(options, wanted.precision, why)


def _library() -> Any:
    """ONNX Runtime, without the telemetry that its builds switch on.

    Recent ones write a device id to the home folder and upload events as soon as they are imported, unless a variable
    is set before. Its name has changed (microsoft/onnxruntime#27379, #29843), so both are set.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")
    import onnxruntime

    return onnxruntime


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes of its own, and Python's for wrong arguments."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own: list[Any] = [
        getattr(state, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile")
        if hasattr(state, name)
    ]
    own += [getattr(state, n) for n in ("NotImplemented", "RuntimeException") if hasattr(state, n)]
    return (*own, ValueError, RuntimeError)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
