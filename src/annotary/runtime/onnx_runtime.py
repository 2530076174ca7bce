"""ONNX Runtime: runs ONNX files without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import ModelError, UsageError
from annotary.runtime import Choice, RuntimeOptions, available_cores


class OnnxSession:
    """One ONNX file, ready to run. Safe to call from several threads.

    On a CPU every call works on one core, and several calls run side by side: images are independent, so this uses the
    cores without the waiting that splitting each operation among them brings.

    Args:
        path: The ONNX file.
        options: How it runs.

    Raises:
        ModelError: The file is missing or is no network that ONNX Runtime can run.
    """

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        ort = _library()
        if not path.is_file():
            raise ModelError(f"{path} is missing")
        wanted = choose(options)
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
            raise ModelError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
        self.choice = _made_true(wanted, self._session.get_providers(), options)
        self._path = path
        entry = self._session.get_inputs()[0]
        self._input = entry.name
        self.fixed_batch: int | None = entry.shape[0] if isinstance(entry.shape[0], int) else None
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, batch: npt.NDArray[np.generic], output: str) -> npt.NDArray[np.float32]:
        """One output for a batch; a network that takes one image at a time gets one at a time.

        Raises:
            ModelError: The batch does not fit the network.
        """
        parts = [batch] if self.fixed_batch != 1 else [batch[i : i + 1] for i in range(len(batch))]
        try:
            results = [self._session.run([output], {self._input: part})[0] for part in parts]
        except _errors() as error:
            told = _first_line(error)
            raise ModelError(f"ONNX Runtime cannot run {self._path}: {told}") from error
        return np.concatenate(results).astype(np.float32, copy=False)


_PROVIDERS = {"cuda": ["CUDAExecutionProvider"], "cpu": []}
"""ONNX Runtime's own names of devices."""


def choose(options: RuntimeOptions) -> Choice:
    """What ONNX files run on here, and why.

    Raises:
        UsageError: The device that was asked for is not offered.
    """
    ort = _library()
    offers_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if options.device == "cuda" and not offers_cuda:
        raise UsageError(f"ONNX Runtime {ort.__version__} as installed offers no CUDA")
    if offers_cuda and options.device != "cpu":
        said = "as asked" if options.device == "cuda" else "this build of ONNX Runtime offers CUDA"
        threads = options.threads or available_cores()
        return Choice(f"ONNX Runtime {ort.__version__}", "cuda", "fp32", 1, threads, said)
    why = "as asked" if options.device == "cpu" else "this build of ONNX Runtime offers no GPU"
    return _on_cpu(options, why)


def _on_cpu(options: RuntimeOptions, why: str) -> Choice:
    ort = _library()
    cores = options.threads or available_cores()
    said = "as asked" if options.threads else "all that this process may use"
    reason = f"{why}; {cores} cores, {said}, one stream each"
    return Choice(f"ONNX Runtime {ort.__version__}", "cpu", "fp32", cores, 1, reason)


def _made_true(wanted: Choice, providers: Sequence[str], options: RuntimeOptions) -> Choice:
    """The choice as it came out: ONNX Runtime falls back to the processor where a GPU cannot be used."""
    if all(name in providers for name in _PROVIDERS[wanted.device]):
        return wanted
    return _on_cpu(options, f"{wanted.device} cannot be used here, although it is offered")


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
