"""Trains taggers by a recipe: stages, measurements, checkpoints, and going on after any stop with the same bits.

    run.json ── stage ──▶ step ──▶ step ──▶ … ──▶ stage ──▶ … ──▶ thresholds
                 │ loader: exact order by seed and pass; starts at any image
                 │ learner: weights, optimiser, scale, mean
                 └ every N images: measurement, checkpoint

A run knows its place by the stage and the step alone. All else that a step depends on follows from these and the
recipe's seed, or lies in the checkpoint, so a process that is killed loses the steps since the last checkpoint and
makes the same ones again.
"""

from __future__ import annotations

from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from annotary.training._feeding import FAILURES, Feed, Measuring, Training, failed_images
from annotary.training._learning import Learner
from annotary.training._metering import Meter
from annotary.training._run_folder import CHECKPOINTS, RUN, check_folder, run_folder
from annotary.training._run_parts import categories_of, loss_of, measuring_loss_of, new_network
from annotary.training._stopping import StopRequests
from annotary.training._validation import Measured, fitted_thresholds, measure
from annotary.training.checkpoints import (
    WEIGHTS_FILE,
    Checkpoints,
    load_checkpoint,
    read_checkpoint,
)
from annotary.training.dataset.index import TagDataset
from annotary.training.distributed import Processes
from annotary.training.logs import STEPS, Logs, open_logs
from annotary.training.network import TaggerNetwork
from annotary.training.plan import StagePlan, plan_stages
from annotary.training.recipe import TaggerRecipe


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run has come to.

    Attributes:
        best: The best checkpoint; the last one where nothing was measured.
        last: The last one.
        samples: Images that were seen, over all passes.
        metrics: What was measured at the best one, by name; empty where nothing was.
        failed: Images that could not be had, and so count nothing; they are listed in `failures.jsonl`.
        was_done: Whether there was nothing left to do.
    """

    best: Path
    last: Path
    samples: int
    metrics: dict[str, float]
    failed: int
    was_done: bool


@dataclass(slots=True)
class _Place:
    """Where a run is."""

    stage: int = 0
    step: int = 0
    """Steps of the stage that are done."""

    samples: int = 0
    """Images that were seen in all stages."""

    epoch: int = 0
    """Pass over the images."""

    seen: int = 0
    """Images of the pass that were seen."""


class Trainer:
    """A training run.

    Args:
        recipe: How.
        dataset: Of what.
        output: The folder of the run. Where it holds one of the same recipe and dataset, that one is continued.
        processes: Who shares the work, as `distributed.running_processes` tells; this process alone when None.
        must_continue: Refuse to begin a new run.
        quiet: Tell nothing on the terminal.

    Raises:
        UsageError: The dataset has nothing to learn from, a batch cannot be shared by the processes, or the recipe
            needs a network to start from.
    """

    def __init__(
        self,
        recipe: TaggerRecipe,
        dataset: TagDataset,
        output: Path,
        processes: Processes | None = None,
        *,
        must_continue: bool = False,
        quiet: bool = False,
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.output = output
        if not self.is_begun:
            recipe.check_start()
        self.processes = processes or Processes()
        self.stages = plan_stages(recipe, self.processes.count)
        self.loss = loss_of(recipe, dataset)
        self._measuring_loss = measuring_loss_of(recipe)
        self._must_continue = must_continue
        self._quiet = quiet
        self._categories = categories_of(dataset)
        self._checkpoints = Checkpoints(
            output / CHECKPOINTS,
            recipe.checkpoints.keep,
            recipe.validation.metric,
            is_higher_better=recipe.validation.metric != "loss",
        )
        self._thresholds: dict[str, list[float]] | None = None
        self._is_measured = True
        self._feed = Feed(dataset, recipe, self.processes, output / FAILURES)

    @property
    def samples(self) -> int:
        """Images that the whole run sees, over all passes."""
        return sum(stage.samples for stage in self.stages)

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds a run already that has come to a step."""
        return (self.output / RUN).exists() and _has_come(self.output)

    def check_output(self) -> None:
        """Make sure that the folder can be this run's; it is made.

        Raises:
            OutputError: It holds something else, or cannot be written.
            UsageError: There is no run, but there must be one.
        """
        if self.processes.is_first:
            check_folder(self.output, must_exist=self._must_continue)

    def run(self) -> TrainingResult:
        """Begin the run, or go on with it, to its end.

        Raises:
            OutputError: The folder belongs to something else, or cannot be written.
            UsageError: There is no run, but there must be one; or the loss is no number any more; or images cannot be
                had.
            ModelError: What the network starts from cannot be loaded.
        """
        folder = run_folder(
            *(self.output, self.recipe.settings(), self.dataset),
            must_exist=self._must_continue,
            has_come=_has_come,
        )
        with folder if self.processes.is_first else nullcontext():
            found = self.processes.told(self._checkpoints.latest())
            if found is None and self.processes.is_first:
                with suppress(OSError):  # all of them are tried anew
                    (self.output / FAILURES).unlink(missing_ok=True)
            place = _Place()
            learner, network = self._learner(found, place)
            was_done = place.samples == self.samples
            stops = StopRequests(is_active=self.processes.count == 1)
            with stops, self._logs(place) as logs:
                for note in self._notes(network, found, place):
                    logs.note(note)
                for plan in self.stages[place.stage :]:
                    self._do_stage(plan, place, learner, network, logs, stops)
            return self._result(was_done=was_done)

    def _learner(self, found: Path | None, place: _Place) -> tuple[Learner, TaggerNetwork]:
        """What learns, at the place from which the run goes on."""
        known = None if found is None else read_checkpoint(found)
        samples = 0 if known is None else known.samples
        # The end of a stage belongs to it: the next has not changed the size yet.
        begun = [stage for stage in self.stages if stage.first_sample < samples] or self.stages[:1]
        network = new_network(self.recipe, self.dataset, begun[-1].image_size, found)
        if found is None:
            return Learner(network, self.loss, self.recipe, self.processes), network
        state = load_checkpoint(found, network)
        learner = Learner(network, self.loss, self.recipe, self.processes)
        learner.load(state["learner"], load_file(found / WEIGHTS_FILE))
        for name, value in state["place"].items():
            setattr(place, name, value)
        self._thresholds = state.get("thresholds")
        has_metrics = known is not None and bool(known.metrics)
        self._is_measured = has_metrics or not len(self.dataset.validation)
        return learner, network

    def _do_stage(
        self,
        plan: StagePlan,
        place: _Place,
        learner: Learner,
        network: TaggerNetwork,
        logs: Logs,
        stops: StopRequests,
    ) -> None:
        """Do what is left of a stage."""
        if place.stage != plan.number:
            place.stage, place.step = plan.number, 0
            place.epoch, place.seen = place.epoch + 1, 0  # no image is seen twice in the same way
            if plan.is_restart:
                learner.restart()
        if network.image_size != plan.image_size:
            network.set_image_size(plan.image_size)
        dropped = self.recipe.stages[plan.number].patch_dropout
        network.patch_dropout = self.recipe.network.patch_dropout if dropped is None else dropped
        is_scaled = self.recipe.precision.numbers == "fp16"
        meter = Meter(plan, self.recipe.logs.every, skips_overflows=is_scaled)
        spec = network.preprocess
        with (
            closing(
                self._feed.training(plan.part_size, spec, place.epoch, place.seen, plan.share)
            ) as parts,
            closing(self._feed.validation(plan.part_size, spec)) as measuring,
        ):
            is_whole = place.step == 0
            if place.step == plan.steps and not self._is_measured:
                self._keep(plan, place, learner, network, logs, measuring)
            while place.step < plan.steps:
                stepped = learner.step(
                    meter.watching(parts),
                    plan.parts,
                    plan.learning_rate(place.step),
                    (plan.number, place.step),
                    plan.share,
                )
                place.step += 1
                place.samples += plan.batch_size
                place.epoch, place.seen = parts.position
                is_end = place.step == plan.steps
                if meter.is_due(place.step):
                    logs.step(meter.row(place.step, place.samples, stepped))
                is_measured = is_end or self._is_due(self.recipe.validation.every, place, plan)
                is_saved = stops.is_asked or self._is_due(
                    self.recipe.checkpoints.every, place, plan
                )
                if is_measured or is_saved:
                    # A run cannot go on from weights that are lost, nor from those that saw nothing.
                    meter.check(place.samples, stepped)
                    if not is_whole or self._has_seen(parts, must=is_end):
                        images = measuring if is_measured else None
                        self._keep(plan, place, learner, network, logs, images)
                    meter.restart()
                if stops.is_asked:
                    stops.obey()

    def _is_due(self, every: int, place: _Place, plan: StagePlan) -> bool:
        """Whether the step that was just done has gone over a multiple of so many samples."""
        before = place.samples - plan.batch_size
        return bool(every) and place.samples // every > before // every

    def _has_seen(self, parts: Training, *, must: bool) -> bool:
        """Whether any process could have an image.

        Raises:
            UsageError: None could, but there must be one.
        """
        had = torch.tensor(float(parts.had), device=self.processes.device)
        is_any = bool(self.processes.total(had))
        if must and not is_any:
            raise parts.error()
        return is_any

    def _keep(
        self,
        plan: StagePlan,
        place: _Place,
        learner: Learner,
        network: TaggerNetwork,
        logs: Logs,
        images: Measuring | None,
    ) -> None:
        """Measure, if there are images for it, and write a checkpoint.

        Raises:
            UsageError: There are, but none of them can be had; what was trained is saved.
        """
        threshold = self.recipe.validation.threshold
        if images is None or not len(self.dataset.validation):
            self._save(place, learner, network, None)
            return
        tags = len(self.dataset.tags)
        measured = measure(learner, images, self._measuring_loss, tags, threshold)
        if not measured.images:
            self._save(place, learner, network, None)
            raise images.error()
        # Before the checkpoint: rows after it are cut off when a run goes on, and others never come.
        logs.validation(measured.row(plan.number + 1, place.step, place.samples, threshold))
        self._save(place, learner, network, measured)
        self._is_measured = True

    def _save(
        self, place: _Place, learner: Learner, network: TaggerNetwork, measured: Measured | None
    ) -> None:
        """Write a checkpoint; all processes take part, and the first writes."""
        own = learner.weights()
        mean = learner.mean_weights(own)
        if measured is not None:
            self._thresholds = fitted_thresholds(measured.histograms, self._categories)
        state = {
            "learner": learner.state(),
            "place": asdict(place),
            "thresholds": self._thresholds,
        }
        if self.processes.is_first:
            self._checkpoints.save(
                place.samples,
                network,
                self.dataset.tags,
                training_state=state,
                # Of the last measurement, where there was none since.
                thresholds=self._thresholds,
                categories=self._categories,
                metrics={} if measured is None else measured.metrics,
                weights=mean,
                own_weights=own,
                about=self._about(),
            )
        self.processes.wait()

    def _about(self) -> dict[str, str]:
        about = {"name": self.recipe.name}
        if self.recipe.description:
            about["description"] = self.recipe.description
        return about

    def _logs(self, place: _Place) -> Logs:
        if not self.processes.is_first:
            return Logs([])
        return open_logs(
            self.output,
            self.recipe.logs,
            settings=self.recipe.settings(),
            samples=place.samples,
            total=self.samples,
            quiet=self._quiet,
        )

    def _notes(self, network: TaggerNetwork, found: Path | None, place: _Place) -> list[str]:
        """What is worth telling before the first step."""
        if found is None:
            return [str(network.start)] if self.recipe.network.start else []
        return [f"going on from {found}, after {place.samples:,} of {self.samples:,} samples"]

    def _result(self, *, was_done: bool) -> TrainingResult:
        last = self.processes.told(self._checkpoints.latest())
        best = self.processes.told(self._checkpoints.best()) or last
        assert last is not None
        assert best is not None
        known = read_checkpoint(best) if self.processes.is_first else None
        metrics = dict(known.metrics) if known is not None else {}
        failed = failed_images(self.output / FAILURES)
        return TrainingResult(best, last, self.samples, metrics, failed, was_done)


def _has_come(output: Path) -> bool:
    """Whether a run has come to a step that it told of, or to a checkpoint, so that its settings are fixed."""
    with suppress(OSError):
        if any((output / CHECKPOINTS).iterdir()):
            return True
    with suppress(OSError):
        return len((output / STEPS).read_bytes().splitlines()) > 1
    return False
