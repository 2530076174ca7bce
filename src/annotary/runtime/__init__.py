"""How a network runs: which library, on which device, with how many threads; each choice is stated with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How the network runs."""

    threads: int | None = None
    """Processor cores to use; all that the process may use when nothing is said."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto takes a GPU when the runtime offers one."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, but got {self.threads}")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a network runs on, and why.

    Attributes:
        library: The library that runs it.
        device: `cpu`, `cuda`, ...
        precision: Of the arithmetic, `fp32` unless the file says otherwise.
        streams: How many batches it works on at once.
        threads: Threads a stream.
        reason: Why, in words.
    """

    library: str
    device: str
    precision: str
    streams: int
    threads: int
    reason: str


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
