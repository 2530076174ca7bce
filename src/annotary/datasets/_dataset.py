"""A dataset's folder: whose it is, what is in it, and what was placed there already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from annotary import __version__
from annotary.datasets._contract import TaskName, check_format, places_images
from annotary.datasets._images import STORE, ImageStore
from annotary.datasets._journal import JOURNAL_FILE, Entry, Journal
from annotary.datasets._known import STATE_FILE, KnownLabels
from annotary.datasets._options import DatasetOptions
from annotary.datasets._split import parse_shares
from annotary.errors import OutputError, UsageError
from annotary.pipeline.output import FailureList
from annotary.pipeline.state import RunState
from annotary.records import Box
from annotary.sinks import write_atomically
from annotary.tasks.composing import ComposedBox, chosen_boxes

DESCRIPTION_FILE = "dataset.json"


@dataclass(frozen=True, slots=True)
class Description:
    """What a dataset is of.

    Attributes:
        classes: The labels, in their order, with that for none of them, if there is one.
        model: The id of the card that labels.
        prompts: Label to the sentences that it stands for.
        thresholds: Label to the score 0..1 that an image must reach to be sure; 0 for others.
        settings: What labels depend on, beside the options of the dataset.
        task: What images are labelled with.
        compose_threshold: From which score 0..1 on a classifier is believed what is in a box; where there is one.
    """

    classes: tuple[str, ...]
    model: str
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: TaskName = "classify"
    compose_threshold: float = 0.7

    def choose(self, entry: Entry) -> tuple[str, float, bool]:
        """The label of an image, its score, and whether it is sure: the best label that reaches its threshold."""
        for label, score in entry.labels:
            if score >= self.thresholds.get(label, 0.0):
                return label, score, True
        return (*entry.labels[0], False) if entry.labels else ("", 0.0, False)

    def boxes(self, entry: Entry) -> tuple[Box, ...]:
        """The boxes of an image, the best first: those above the threshold of what the detector takes them for.

        A classifier changes what they are, and not whether they are there: it never says that a crop shows nothing.
        """
        kept = [
            i
            for i, box in enumerate(entry.boxes)
            if box.score > self.thresholds.get(box.label, 0.0)
        ]
        if not entry.classified:
            return tuple(entry.boxes[i] for i in kept)
        composed = [ComposedBox(entry.boxes[i], entry.classified[i]) for i in kept]
        return chosen_boxes(composed, self.compose_threshold)


class Dataset:
    """A dataset that is being made. Use it as a context manager, which keeps other processes away.

    Args:
        output: Its folder.
        form: The format's name.
        options: How it is made.
        description: What it is of.
        inputs: Files and folders that it is made of; it may be neither in them nor around them.

    Attributes:
        folder: The folder, without links in its path.
        journal: What was said of every image.
        failures: Images that could not be labelled or placed.
        store: Images that are no files of their own.
        known: What another dataset says of images.

    Raises:
        UsageError: There is no such format, or the place cannot be.
        OutputError: The folder holds something else, a dataset of other settings, or another process is writing it.
    """

    def __init__(
        self,
        output: Path,
        form: str,
        options: DatasetOptions,
        description: Description,
        inputs: Iterable[str] = (),
        *,
        retry_failed: bool = False,
    ) -> None:
        check_format(form, description.task)
        _check_options(options, description.task)
        self.places_images = places_images(form)
        if options.placing != "copy" and not self.places_images:
            raise UsageError(f"--placing is for formats with images, and {form} has tables alone")
        _check_place(output, inputs)
        known = options.labels_of
        self.known = None if known is None else KnownLabels(known, description.settings)
        self.form = form
        self.options = options
        self.description = description
        self.shares = parse_shares(options.split)
        self.retry_failed = retry_failed
        settings = {
            **description.settings,
            "format": form,
            "split": self.shares,
            "seed": options.seed,
            **_apart(options, description.task),
            "placing": options.placing,
            "thresholds": _said(description.thresholds),
            **_composing(description),
        }
        try:
            self._state = RunState(output, settings, is_folder=True, overwrite=False)
        except OutputError as error:
            # There is no option to overwrite a dataset: somebody may have corrected it by hand.
            raise OutputError(str(error).replace(", or say --on-existing overwrite", "")) from error
        self.folder = Path(os.path.realpath(output))
        try:
            self.failures = FailureList(self._state.failures, renews=retry_failed)
            self.journal = Journal(self.folder / JOURNAL_FILE)
            self.store = ImageStore(self.folder / STORE)
        except BaseException:
            self._state.abandon()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.failures.close()
        finally:
            self._state.release(complete=error is None)

    def read_description(self) -> dict[str, Any]:
        """What `dataset.json` says; nothing when there is none yet.

        Raises:
            OutputError: It cannot be read, or is something else.
        """
        path = self.folder / DESCRIPTION_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise OutputError(f"{path} is not one of annotary's: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get("split"), dict):
            raise OutputError(f"{path} is not one of annotary's; choose another --output")
        return found

    def write_description(
        self,
        split: Mapping[str, Any],
        placed: int,
        found: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write `dataset.json`.

        Args:
            split: What is to be known of the split, beside seed and shares.
            placed: Lines of the journal that were placed and are left alone from now on.
            found: Counts.

        Returns:
            What was written.
        """
        of = self.description
        value = {
            "annotary": __version__,
            "task": of.task,
            "format": self.form,
            "model": of.model,
            "classes": list(of.classes),
            "prompts": {label: list(prompts) for label, prompts in of.prompts.items()},
            "thresholds": _said(of.thresholds),
            **_composing(of),
            **_apart(self.options, of.task, "_images"),
            "split": {"seed": self.options.seed, "shares": self.shares, **split},
            "placed": placed,
            **found,
        }
        text = json.dumps(value, indent=1, ensure_ascii=True) + "\n"
        write_atomically(self.folder / DESCRIPTION_FILE, text, is_durable=True)
        return value


def _said(thresholds: Mapping[str, float]) -> dict[str, float]:
    return {label: value for label, value in thresholds.items() if value > 0.0}


def _composing(description: Description) -> dict[str, float]:
    """From where on a classifier is believed, where there is one."""
    if not description.settings.get("compose"):
        return {}
    return {"compose_threshold": description.compose_threshold}


def _apart(options: DatasetOptions, task: TaskName, ending: str = "") -> dict[str, str]:
    """What becomes of images in which nothing was found, as the task calls them."""
    if task == "classify":
        return {f"unsure{ending}": options.unsure}
    return {f"backgrounds{ending}": options.backgrounds}


def _check_options(options: DatasetOptions, task: TaskName) -> None:
    """Refuse what means nothing for a task."""
    if task == "detect" and options.unsure != DatasetOptions().unsure:
        raise UsageError("--unsure is for --task classify; images without a box: --backgrounds")
    if task == "classify" and options.backgrounds != DatasetOptions().backgrounds:
        raise UsageError("--backgrounds is for --task detect; images below the threshold: --unsure")


def _check_place(output: Path, inputs: Iterable[str]) -> None:
    """Refuse a folder that holds something else, is in an input, or has an input in it."""
    own = Path(os.path.realpath(output))
    for told in inputs:
        if not os.path.exists(told):  # noqa: PTH110 - an address is no path
            continue
        path = Path(os.path.realpath(told))
        if own == path or (path.is_dir() and own.is_relative_to(path)):
            raise UsageError(
                f"{output} is in {told}, whose images are read; choose another --output"
            )
        if path.is_relative_to(own):
            raise UsageError(f"{told} is in {output}, which is written; choose another --output")
    if output.is_dir():
        has_other = any(entry.name != STATE_FILE for entry in output.iterdir())
        if has_other and not (output / STATE_FILE).is_file():
            raise OutputError(
                f"{output} is not empty and is no dataset of annotary; choose another --output"
            )
