"""What a training run will be like, before it begins: stages, steps, parts of batches, memory and hours.

The first half is arithmetic and needs no torch. The second does some real steps on a network that is thrown away, with
real images, and counts the bytes that the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from annotary.errors import UsageError
from annotary.training.recipe import TaggerRecipe
from annotary.training.schedules import Schedule

if TYPE_CHECKING:
    from annotary.training.dataset.index import TagDataset
    from annotary.training.distributed import Processes


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage as it will be done.

    Attributes:
        number: From 0.
        image_size: Side of the images in pixels.
        batch_size: Images of a step, over all processes.
        share: Images of a step of one process.
        parts: Parts of a step that each process computes, which are as even as can be.
        steps: Steps of the stage.
        first_sample: Images that were seen before it.
        is_restart: Whether it begins with a new optimiser.
        schedule: The curve of the learning rate, which may have begun in an earlier stage.
        curve_start: Images that were seen before the curve began.
    """

    number: int
    image_size: int
    batch_size: int
    share: int
    parts: int
    steps: int
    first_sample: int
    is_restart: bool
    schedule: Schedule
    curve_start: int

    @property
    def part_size(self) -> int:
        """Images that a process takes at a time, at most."""
        return math.ceil(self.share / self.parts)

    @property
    def samples(self) -> int:
        """Images that are seen in it, in whole batches."""
        return self.steps * self.batch_size

    def learning_rate(self, step: int) -> float:
        """Of a step, from 0."""
        return self.schedule(self.first_sample - self.curve_start + step * self.batch_size)


def plan_stages(recipe: TaggerRecipe, processes: int = 1) -> tuple[StagePlan, ...]:
    """The stages of a run.

    Args:
        recipe: What is done.
        processes: How many share it.

    Raises:
        UsageError: A batch cannot be shared by so many, or is more than its stage, or the learning rate has no time to
            rise.
    """
    steps = [
        math.ceil(stage.samples / recipe.sizes_of(number)[0])
        for number, stage in enumerate(recipe.stages)
    ]
    sizes = [recipe.sizes_of(number)[0] for number in range(len(recipe.stages))]
    firsts = [sum(s * b for s, b in zip(steps[:n], sizes, strict=False)) for n in range(len(steps))]
    plans: list[StagePlan] = []
    for number, stage in enumerate(recipe.stages):
        batch, device = recipe.sizes_of(number)
        if batch > stage.samples:
            raise UsageError(
                f"recipe {recipe.name}, stage {number + 1}: a batch of {batch:,} is more than the {stage.samples:,}"
                " samples of the stage; lower data.batch_size"
            )
        is_restart = stage.restart or number == 0
        begin = number if is_restart else _curve_stage(recipe, number)
        end = next(
            (n for n in range(begin + 1, len(steps)) if recipe.stages[n].restart), len(steps)
        )
        length = sum(steps[n] * sizes[n] for n in range(begin, end))
        highest = stage.learning_rate or recipe.optimiser.learning_rate
        try:
            schedule = Schedule(recipe.schedule, highest, length)
        except ValueError as error:
            raise UsageError(f"recipe {recipe.name}, stage {number + 1}: {error}") from error
        share = _share(batch, processes)
        plans.append(
            StagePlan(
                number=number,
                image_size=stage.image_size,
                batch_size=batch,
                share=share,
                parts=math.ceil(share / device),
                steps=steps[number],
                first_sample=firsts[number],
                is_restart=is_restart,
                schedule=schedule,
                curve_start=firsts[begin],
            )
        )
    return tuple(plans)


def _curve_stage(recipe: TaggerRecipe, number: int) -> int:
    """The stage in which the curve of a stage's learning rate began."""
    return next(n for n in range(number, -1, -1) if recipe.stages[n].restart or n == 0)


def _share(batch: int, processes: int) -> int:
    """Images of a batch that each process computes.

    Raises:
        UsageError: They cannot all have as many.
    """
    if batch % processes:
        raise UsageError(
            f"a batch of {batch} cannot be shared evenly by {processes} processes; change data.batch_size"
        )
    return batch // processes


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """What a stage will take.

    Attributes:
        stage: It.
        memory: Bytes that a process needs for weights, gradients, optimiser and a part's numbers; on a GPU measured.
        samples_per_second: Of the network, over all processes; None where the network did not fit into memory.
        loader_samples_per_second: Of reading, decoding and augmenting alone, over all processes.
        hours: Until it is done, without measurements on validation images; None as above.
    """

    stage: StagePlan
    memory: int
    samples_per_second: float | None
    loader_samples_per_second: float
    hours: float | None


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will be like.

    Attributes:
        recipe: Its name.
        tags: How many there are.
        images: To learn from.
        validation: To measure on.
        parameters: Of the network.
        trained: Those of them that are trained.
        processes: How many share the work.
        device: Where each computes.
        numbers: What they compute in.
        stages: What each stage will take.
    """

    recipe: str
    tags: int
    images: int
    validation: int
    parameters: int
    trained: int
    processes: int
    device: str
    numbers: str
    stages: tuple[StageEstimate, ...]

    @property
    def hours(self) -> float | None:
        """Of all stages; None where one of them is not known."""
        hours = [stage.hours for stage in self.stages]
        return sum(one for one in hours if one is not None) if None not in hours else None

    def to_json(self) -> dict[str, Any]:
        """It as JSON."""
        told = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        told["hours"] = self.hours
        told["stages"] = [
            {
                "image_size": one.stage.image_size,
                "samples": one.stage.samples,
                "steps": one.stage.steps,
                "batch_size": one.stage.batch_size,
                "device_batch_size": one.stage.part_size,
                "accumulation": one.stage.parts,
                "memory": one.memory,
                "samples_per_second": one.samples_per_second,
                "loader_samples_per_second": one.loader_samples_per_second,
                "hours": one.hours,
            }
            for one in self.stages
        ]
        return told


def plan_lines(plan: RunPlan) -> list[str]:
    """A plan in words, a line each."""
    where = (
        f"{plan.processes} processes, each on {plan.device}" if plan.processes > 1 else plan.device
    )
    known = f"{plan.images:,} images to learn from and {plan.validation:,} to measure on"
    network = (
        f"{plan.parameters / 1e6:,.1f} M parameters, {plan.trained / 1e6:,.1f} M of them trained"
    )
    lines = [
        f"recipe {plan.recipe}: {known}, {plan.tags:,} tags",
        f"network: {network}, {plan.numbers}, {where}",
    ]
    for one in plan.stages:
        stage = one.stage
        passes = stage.samples / plan.images
        is_even = stage.share % stage.parts == 0
        size = str(stage.part_size) if is_even else f"{stage.part_size - 1} or {stage.part_size}"
        lines.append(
            f"stage {stage.number + 1}: {stage.samples:,} samples of {stage.image_size} px ({passes:,.1f} passes),"
            f" {stage.steps:,} steps of {stage.batch_size:,} ({stage.parts} x {size}"
            + (f" x {plan.processes}" if plan.processes > 1 else "")
            + f"), {_bytes(one.memory)} of memory, {_pace(one)}"
        )
    lines.append(
        "expected: " + ("more memory than there is" if plan.hours is None else _hours(plan.hours))
    )
    if not plan.validation:
        lines.append(
            "warning: the dataset has no images to measure on, so nothing will be measured, and the last checkpoint"
            " counts as the best"
        )
    return lines


def _pace(one: StageEstimate) -> str:
    if one.samples_per_second is None or one.hours is None:
        return "which is more than there is"
    told = (
        f"{one.samples_per_second:,.1f} samples/s (images can be had at"
        f" {one.loader_samples_per_second:,.1f}/s), {_hours(one.hours)}"
    )
    if one.loader_samples_per_second < one.samples_per_second:
        told += "; loading is what limits it: more data.workers, or data.cache_mb"
    return told


def _bytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GB" if count >= 2**30 else f"{count / 2**20:,.0f} MB"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{round(hours * 60)} min" if hours * 60 >= 1 else "under a minute"


def make_plan(recipe: TaggerRecipe, dataset: TagDataset, processes: Processes) -> RunPlan:
    """Plan a run, with the pace of some real steps. It takes some seconds a stage.

    Args:
        recipe: What is done.
        dataset: With what.
        processes: Who shares it. Each measures itself alone: what they tell each other takes some time more.

    Raises:
        UsageError: The recipe, the dataset and the processes do not fit each other.
    """
    from annotary.training._trial import measure_stages

    stages = plan_stages(recipe, processes.count)
    trial = measure_stages(recipe, dataset, processes, stages)
    estimates = []
    for stage, pace in zip(stages, trial.paces, strict=True):
        seconds = None
        if pace.seconds is not None:
            seconds = stage.samples * max(pace.seconds, pace.loading_seconds) / processes.count
        estimates.append(
            StageEstimate(
                stage=stage,
                memory=pace.memory,
                samples_per_second=None if pace.seconds is None else processes.count / pace.seconds,
                loader_samples_per_second=processes.count / pace.loading_seconds,
                hours=None if seconds is None else seconds / 3600,
            )
        )
    return RunPlan(
        recipe=recipe.name,
        tags=len(dataset.tags),
        images=trial.images,
        validation=len(dataset.validation),
        parameters=trial.parameters,
        trained=trial.trained,
        processes=processes.count,
        device=str(processes.device),
        numbers=recipe.precision.numbers,
        stages=tuple(estimates),
    )
