"""What is asked of a run of a network, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Inputs: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
Device: TypeAlias = Literal["cpu", "cuda"]
Library: TypeAlias = Literal["onnxruntime", "openvino", "torch"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How the network runs."""

    threads: int | None = None
    """Processor cores to use; all that the process may use when nothing is said."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto takes a GPU when the runtime offers one."""

    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """What the network computes in; auto takes the fastest that loses no quality here (`annotary doctor` says which).
    int8 needs a file made for it by `annotary export`."""

    runtime: Literal["auto", "onnxruntime", "openvino", "torch"] = "auto"
    """The library that runs the network; auto takes the fastest that is installed."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, but got {self.threads}")
        choices = {
            "device": ("auto", *get_args(Device)),
            "precision": ("auto", *get_args(Precision)),
            "runtime": ("auto", *get_args(Library)),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                told = ", ".join(known)
                raise ValueError(f"{name} must be one of {told}, but got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a network runs on, and why.

    Attributes:
        library: The library that runs it, with its version.
        device: `cpu`, `cuda`, ...
        precision: Of most of the arithmetic: `fp32`, `bf16`, `fp16` or `int8`.
        streams: How many batches it works on at once.
        threads: Threads a stream.
        reason: Why, in words.
        batch_size: Images in a batch, at its best.
    """

    library: str
    device: str
    precision: str
    streams: int
    threads: int
    reason: str
    batch_size: int = 4


class Session(Protocol):
    """A network that is ready to run.

    Attributes:
        fixed_batch: How many images it takes at once, where that is fixed; `run` cuts and fills other batches.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
    """

    fixed_batch: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""

    def run(
        self, batch: npt.NDArray[np.generic], output: str, beside: Inputs | None = None
    ) -> npt.NDArray[np.float32]:
        """One output for a batch. Safe to call from several threads.

        Args:
            batch: What goes into the first input that is not named in `beside`.
            output: Its name.
            beside: What goes into further inputs, by name, with as many rows as the batch.

        Raises:
            ModelError: The batch does not fit the network.
        """


def in_fixed(batch: npt.NDArray[np.generic], fixed: int | None) -> list[npt.NDArray[np.generic]]:
    """A batch as the parts that a network takes; the last one is filled with its last image.

    Args:
        batch: The images, along the first axis.
        fixed: How many a part has; None when any number will do.
    """
    if fixed is None or not len(batch):
        return [batch]
    parts = [batch[start : start + fixed] for start in range(0, len(batch), fixed)]
    if lacking := fixed - len(parts[-1]):
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], lacking, axis=0)])
    return parts


def first_input(names: Sequence[str], beside: Inputs | None) -> str:
    """The first input that is not among the named ones."""
    return next((name for name in names if not beside or name not in beside), names[0])


def in_fixed_parts(
    batch: npt.NDArray[np.generic], first: str, beside: Inputs | None, fixed: int | None
) -> list[dict[str, npt.NDArray[np.generic]]]:
    """All inputs of a network by name, as the parts that it takes.

    Args:
        batch: What goes into the input `first`.
        first: Its name.
        beside: What goes into others.
        fixed: As for `in_fixed`.
    """
    every = {first: batch, **(beside or {})}
    cut = [[(name, part) for part in in_fixed(rows, fixed)] for name, rows in every.items()]
    return [dict(parts) for parts in zip(*cut, strict=True)]


LARGE_SIDE = 384
"""From this side of the input on, one image fills a core's caches and arithmetic by itself."""

BATCH_ON_GPU = 32
BATCH_OF_SMALL = 4


def best_batch(device: str, shape: tuple[int | None, ...]) -> int:
    """Images in a batch, for an input of a shape (None where an axis is open).

    On a processor one large image a call is as fast as several (`python -m benchmarks.joytag`) and takes the least
    memory; small ones are faster together.
    """
    if device != "cpu":
        return BATCH_ON_GPU
    sides = sorted(axis for axis in shape[1:] if axis is not None)
    return 1 if len(sides) == 3 and sides[1] >= LARGE_SIDE else BATCH_OF_SMALL
