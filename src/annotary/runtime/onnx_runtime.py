"""ONNX Runtime: runs ONNX files without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import ModelError
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
        self.choice = choose(options)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.choice.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        cuda = ["CUDAExecutionProvider"] if self.choice.device == "cuda" else []
        if not path.is_file():
            raise ModelError(f"{path} is missing")
        try:
            self._session = ort.InferenceSession(
                path, settings, providers=[*cuda, "CPUExecutionProvider"]
            )
        except _errors() as error:
            raise ModelError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
        self._path = path
        self._input = self._session.get_inputs()[0].name
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, batch: npt.NDArray[np.generic], output: str) -> npt.NDArray[np.float32]:
        """One output for a batch.

        Raises:
            ModelError: The batch does not fit the network.
        """
        try:
            (result,) = self._session.run([output], {self._input: batch})
        except _errors() as error:
            raise ModelError(
                f"ONNX Runtime cannot run {self._path}: {_first_line(error)}"
            ) from error
        return np.asarray(result, dtype=np.float32)


def choose(options: RuntimeOptions) -> Choice:
    """What ONNX files run on here, and why."""
    ort = _library()
    cores = options.threads or available_cores()
    version = f"ONNX Runtime {ort.__version__}"
    if "CUDAExecutionProvider" in ort.get_available_providers():
        reason = "this build of ONNX Runtime offers CUDA"
        return Choice(version, "cuda", "fp32", streams=1, threads=cores, reason=reason)
    said = "as asked" if options.threads else "all that this process may use"
    reason = f"this build of ONNX Runtime offers no GPU; {cores} cores, {said}, one stream each"
    return Choice(version, "cpu", "fp32", streams=cores, threads=1, reason=reason)


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
