"""What the processor can do, and what a file asks of it; found without libraries."""

from __future__ import annotations

import mmap
import os
from functools import cache
from pathlib import Path

FEATURES = {
    "avx512_bf16": "bf16",
    "amx_bf16": "bf16",
    "bf16": "bf16",
    "avx512_fp16": "fp16",
    "amx_fp16": "fp16",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "i8mm": "vnni",
    "amx_tile": "amx",
}
"""Linux's names of what processors of Intel, AMD and Arm have, and what is said here for it."""


@cache
def processor_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Of `bf16`, `fp16` (arithmetic in hardware), `vnni` (8-bit products) and `amx` what the processor has.

    Empty where the system does not say (other systems than Linux).
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    names = flags.partition(":")[2].split()
    return frozenset(FEATURES[name] for name in names if name in FEATURES)


def available_cores() -> int:
    """Processor cores that this process may use: its affinity, and its share under a Linux control group."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return max(1, cores)


def _written(*names: bytes) -> tuple[bytes, ...]:
    """How operators stand in an ONNX file: `op_type` is field 4 of a node (onnx.proto), a text with its length."""
    return tuple(b"\x22" + bytes([len(name)]) + name for name in names)


_QUANTISED = _written(
    *(b"QuantizeLinear", b"QLinearConv", b"QLinearMatMul", b"ConvInteger", b"MatMulInteger")
)
_LAYER_NORM = _written(b"LayerNormalization")
_SOFTMAX = _written(b"Softmax")
_TO_HALF = (b"\x0a\x02to\x18\x0a",)
"""The attribute of a Cast to float16: its name, then field 3 with onnx.proto's number of that type."""

_ELSEWHERE = (b"\x0a\x08location",)
"""The first entry of a tensor's external data: its key."""


def precision_of(path: Path) -> str:
    """What an ONNX file computes in: `int8` or `fp16` if it rounds its values to such on the way, else `fp32`.

    Weights that are only stored in float16, and widened when they are used, do not count.
    """
    if _has_any(path, _QUANTISED):
        return "int8"
    return "fp16" if _has_any(path, _TO_HALF) else "fp32"


def leads_elsewhere(path: Path) -> bool:
    """Whether an ONNX file is a link, as in the hub's cache, and has weights in files beside it."""
    return path.is_symlink() and _has_any(path, _ELSEWHERE)


def is_transformer(path: Path) -> bool:
    """Whether an ONNX file's network normalises its layers, or attends in several, as transformers do."""
    return _has_any(path, _LAYER_NORM) or _has_any(path, _SOFTMAX, times=2)


def _has_any(path: Path, operators: tuple[bytes, ...], times: int = 1) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            return any(_occurs(held, operator, times) for operator in operators)
    except (OSError, ValueError):
        return False  # missing or empty: opening it tells


def _occurs(held: mmap.mmap, operator: bytes, times: int) -> bool:
    at = -1
    for _ in range(times):
        at = held.find(operator, at + 1)
        if at < 0:
            return False
    return True
