"""Some steps of each stage of a run, with a network that is thrown away: how fast they are, and what they hold."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from annotary.training._feeding import Feed, Training
from annotary.training._learning import Learner, Part
from annotary.training._run_parts import loss_of, new_network
from annotary.training.dataset.index import TagDataset
from annotary.training.distributed import Processes
from annotary.training.network import TaggerNetwork
from annotary.training.plan import StagePlan
from annotary.training.recipe import TaggerRecipe

_PART_SECONDS = 2.0
"""How long a part of a batch may take on a processor; larger ones are measured by a smaller one."""

_LOADING_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What a stage is like for one process.

    Attributes:
        seconds: Of a sample; None where the network does not fit into memory.
        loading_seconds: Of a sample, for reading alone.
        memory: Bytes.
    """

    seconds: float | None
    loading_seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found.

    Attributes:
        images: That there are to learn from.
        parameters: Of the network.
        trained: Those of them that are trained.
        paces: Of each stage.
    """

    images: int
    parameters: int
    trained: int
    paces: tuple[Pace, ...]


def measure_stages(
    recipe: TaggerRecipe, dataset: TagDataset, processes: Processes, stages: Sequence[StagePlan]
) -> Trial:
    """Do some steps of each stage.

    Args:
        recipe: How.
        dataset: Of what.
        processes: Where this process computes; the others are not spoken to.
        stages: The stages.
    """
    alone = Processes(device=processes.device)
    network = new_network(recipe, dataset, stages[0].image_size)
    parameters = sum(weight.numel() for weight in network.parameters())
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    # What is compiled would take minutes before it is faster.
    recipe = replace(recipe, precision=replace(recipe.precision, compile=False))
    learner = Learner(network, loss_of(recipe, dataset), recipe, alone)
    feed = Feed(dataset, recipe, alone)
    held = 4 * parameters + 12 * trained + (4 * trained if learner.mean is not None else 0)
    if recipe.precision.strategy == "fsdp":
        held //= processes.count
    paces = []
    for stage in stages:
        if network.image_size != stage.image_size:
            network.set_image_size(stage.image_size)
        paces.append(_pace(learner, network, feed, stage, held))
    return Trial(feed.images, parameters, trained, tuple(paces))


def _pace(
    learner: Learner, network: TaggerNetwork, feed: Feed, stage: StagePlan, held: int
) -> Pace:
    with closing(feed.training(stage.part_size, network.preprocess)) as parts:
        part = next(parts)
        loading = _loading_seconds(parts, stage.part_size)
    try:
        if learner.processes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            seconds = _seconds(learner, part, stage)
            return Pace(seconds, loading, torch.cuda.max_memory_allocated())
        memory = held + stage.part_size * _kept_bytes(learner, _first(part, 1))
        return Pace(_seconds(learner, part, stage), loading, memory)
    except torch.OutOfMemoryError:
        return Pace(None, loading, held)


def _loading_seconds(parts: Training, size: int) -> float:
    """Seconds that an image takes to be read, when nothing else is done."""
    started, count = time.monotonic(), 0
    while time.monotonic() - started < _LOADING_SECONDS and count < 64:
        next(parts)
        count += 1
    return max(time.monotonic() - started, 1e-6) / (max(count, 1) * size)


def _seconds(learner: Learner, part: Part, stage: StagePlan) -> float:
    """Seconds that a sample takes: its share of a part, and of the optimiser's step."""
    size = len(part.images)
    if learner.processes.device.type == "cpu":
        one = _timed(learner, repeat(_first(part, 1)), 1, stage)
        size = max(1, min(size, int(_PART_SECONDS / one)))
    taken = repeat(_first(part, size))
    first = _timed(learner, taken, 1, stage)
    rounds = 2 if first < _PART_SECONDS / 2 else 1
    # Two parts a step and one: the difference is what a part takes, the rest is the optimiser's.
    single, double = (min(_timed(learner, taken, n, stage) for _ in range(rounds)) for n in (1, 2))
    own = max(double - single, single / 2) if double > single else single
    step = max(single - own, 0.0)
    return own / size + step / stage.share


def _timed(learner: Learner, parts: Iterator[Part], count: int, stage: StagePlan) -> float:
    """Seconds of a step of so many parts."""
    started = time.monotonic()
    learner.step(parts, count, stage.learning_rate(0) or 1e-9, (stage.number, 0))
    if learner.processes.device.type == "cuda":
        torch.cuda.synchronize()
    return max(time.monotonic() - started, 1e-6)


def _kept_bytes(learner: Learner, part: Part) -> int:
    """Bytes that the forward pass of a part keeps for the backward pass, without the weights themselves."""
    own = {weight.untyped_storage().data_ptr() for weight in learner.network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.step(iter([part]), 1, 1e-9, (0, 0))
    return sum(kept.values())


def _first(part: Part, count: int) -> Part:
    return Part(*(tensor[:count] for tensor in part if tensor is not None))
