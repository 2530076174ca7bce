"""torch: runs networks that are written in torch, on processors and NVIDIA's GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.errors import MissingExtra, ModelError
from annotary.runtime._decision import decide, offers
from annotary.runtime._options import Choice, Inputs, RuntimeOptions, best_batch
from annotary.runtime._processor import available_cores

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_ONE_AT_A_TIME = threading.Lock()
"""Held while networks run on the processor: how many threads torch uses is one number for the whole process."""


class TorchSession:
    """A network in torch, ready to run. Safe to call from several threads.

    On a processor one batch runs at a time, on all cores. The results are float32 whatever the network computes in, so
    that a sigmoid after it never is in half precision.

    Args:
        module: The network: it takes images and gives one tensor, or a tuple of tensors and None. It is moved to where
            it runs. With an attribute `casts_itself` that is true it gets floats as they are, else in what it
            computes in.
        output_names: The names of what it gives, in its order.
        options: How it runs.
        image_shape: Axes of one image, for the size of batches.

    Raises:
        MissingExtra: torch is not installed.
        UsageError: torch cannot do what the options ask for.
    """

    fixed_batch: int | None = None
    inputs: tuple[str, ...] = ("images",)

    def __init__(
        self,
        module: nn.Module,
        output_names: Sequence[str],
        options: RuntimeOptions,
        image_shape: tuple[int, ...] = (),
    ) -> None:
        torch = _library()
        decision = decide(replace(options, runtime="torch"), offers(None, has_torch=True))
        self.outputs: tuple[str, ...] = tuple(output_names)
        self.choice = _choice(torch, options, decision.device, decision.precision, decision.reason)
        batch = best_batch(decision.device, (None, *image_shape))
        self.choice = replace(self.choice, batch_size=batch)
        self._numbers = _numbers(torch)[decision.precision]
        # Of numbers that are no pixels a half would lose some.
        self._casts_itself = bool(getattr(module, "casts_itself", False))
        # Where pixels lie channels last, convolutions need no reordering.
        network: Any = module.eval().to(decision.device, self._numbers)
        self._module = network.to(memory_format=torch.channels_last)

    def run(
        self, batch: npt.NDArray[np.generic], output: str, beside: Inputs | None = None
    ) -> npt.NDArray[np.float32]:
        """One output for a batch.

        Raises:
            ModelError: The batch does not fit the network, which has one input, or it has no such output.
        """
        torch = _library()
        if beside:
            raise ModelError(f"the network has no input {next(iter(beside))!r}")
        if output not in self.outputs:
            raise ModelError(f"the network has no output {output!r}")
        with self.computing():
            images = torch.from_numpy(np.ascontiguousarray(batch)).to(self.choice.device)
            try:
                given = self.compute(images)
            except (RuntimeError, ValueError, IndexError) as error:
                raise ModelError(f"torch cannot run the network: {_first_line(error)}") from error
            found: Tensor | None = given[self.outputs.index(output)]
            if found is None:
                raise ModelError(f"the network gives no {output}")
            return np.asarray(found.float().cpu().numpy(), dtype=np.float32)

    def compute(self, images: Tensor) -> tuple[Tensor | None, ...]:
        """All outputs for images that are where the network runs, in what it computes in."""
        torch = _library()
        with torch.inference_mode():
            if images.is_floating_point() and not self._casts_itself:
                images = images.to(self._numbers)
            if images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            given = self._module(images)
        return given if isinstance(given, tuple) else (given,)

    @property
    def network(self) -> nn.Module:
        """The network, where it runs, in what it computes in."""
        network: nn.Module = self._module
        return network

    @property
    def numbers(self) -> torch.dtype:
        """What the network computes in."""
        numbers: torch.dtype = self._numbers
        return numbers

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Where networks run that belong to this one: without gradients, one at a time on the processor.

        There are so many threads as were asked for; afterwards it is as it was, for others who use torch.
        """
        torch = _library()
        if self.choice.device != "cpu":
            with torch.inference_mode():
                yield
            return
        with _ONE_AT_A_TIME, torch.inference_mode():
            before = torch.get_num_threads()
            torch.set_num_threads(self.choice.threads)
            try:
                yield
            finally:
                torch.set_num_threads(before)


def _choice(torch: Any, options: RuntimeOptions, device: str, precision: str, why: str) -> Choice:
    title = f"torch {torch.__version__}"
    if device == "cuda":
        # Two, so that one batch travels to the GPU while another is computed.
        return Choice(title, device, precision, 2, 1, f"{why}: {torch.cuda.get_device_name()}")
    cores = options.threads or available_cores()
    said = "as asked" if options.threads else "all that this process may use"
    reason = f"{why}; {cores} {'core' if cores == 1 else 'cores'}, {said}, one stream"
    return Choice(title, device, precision, 1, cores, reason)


def _numbers(torch: Any) -> dict[str, Any]:
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _library() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "torch") from error
    return torch


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
