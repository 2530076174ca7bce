"""`annotary classify`: say which of some labels fit images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._annotating import (
    Annotating,
    Loaded,
    loaded,
    model_option,
    policy_option,
    running_options,
)
from annotary.cli._labels import labels_kept
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import writing_options
from annotary.errors import UsageError
from annotary.tasks.label_sets import LabelOptions
from annotary.tasks.zero_shot import ZeroShotOptions

if TYPE_CHECKING:
    from annotary.tasks.zero_shot import ZeroShot

MANY_PROMPTS = 5000
"""From so many on it is told that they are embedded, as that takes a while."""


@click.command("classify", cls=SectionedCommand, short_help="Say which of some labels fit images.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@model_option
@options_of(LabelOptions, ZeroShotOptions)
@policy_option
@click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the vectors of texts between runs.",
)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Say which of some labels fit images, zero-shot: any words will do.

    Each label is put in a sentence, "a photo of a LABEL.", and compared with each image. Without --format and --output,
    the best labels are printed. A run that was stopped goes on when the same command is given again.
    """
    click.get_current_context().exit(_classify(paths, values))


def _classify(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line
    from annotary.cli._output import tell

    # Whatever can be wrong is found before anything is written.
    annotating = Annotating(paths, values)
    annotating.check("labels")
    found = loaded(values["model"], annotating.runtime)
    kept = annotating.writing.form, values["top"], found.model
    values["top"] = labels_kept(*kept, multi_label=values["multi_label"])
    task = zero_shot(found, values)
    if not values["quiet"]:
        for note in _notes(task, values):
            tell(note)
    settings = {
        "command": "classify",
        "model": task.source,
        "weights": found.weights,
        **task.settings(),
    }
    code = annotating.run([task], settings, ("classifying", "classified"), as_line("labels"))
    if task.unlabelled and not values["quiet"]:
        tell(
            f"{task.unlabelled:,} images are not in {values['labels_from']}, so they got no labels"
        )
    return code


def _notes(task: ZeroShot, values: dict[str, Any]) -> Iterator[str]:
    """What a user may not have meant."""
    if task.truncated:
        yield f"longer than {task.source} reads, so the end is left out: {_listed(task.truncated)}"
    if task.uncalibrated:
        yield f"--calibration has no threshold for {_listed(task.uncalibrated)}"
    if task.labels_compete and values["policy"] is not None:
        yield "labels compete for each image, so one is always likely: --multi-label judges each by itself"
    elif task.always_wins:
        yield "one label alone always wins: say --none-label NAME, or --multi-label"


def _listed(names: Sequence[str]) -> str:
    """The first five names."""
    from annotary.tasks.label_sets import shortened

    return ", ".join(map(shortened, names[:5])) + (", ..." if len(names) > 5 else "")


def zero_shot(found: Loaded, values: dict[str, Any]) -> ZeroShot:
    """The task that options tell.

    Raises:
        UsageError: They make no sense, or the model does not know texts.
    """
    from annotary.cli._output import tell
    from annotary.tasks.calibration import read_calibration
    from annotary.tasks.encoding import dual_encoder
    from annotary.tasks.label_sets import read_labels
    from annotary.tasks.policy import read_policy
    from annotary.tasks.zero_shot import ZeroShot, read_thresholds

    label_options, options = made(LabelOptions, values), made(ZeroShotOptions, values)
    policy = read_policy(values["policy"]) if values["policy"] else None
    ways = ("labels", "labels_file", "ontology", "labels_from")
    if policy is not None and policy.labels is not None:
        if any(getattr(label_options, way) is not None for way in ways):
            raise UsageError(f"{values['policy']} has labels of its own; tell no others")
        if label_options != LabelOptions():
            raise UsageError(
                f"{values['policy']} has labels of its own, with their templates and background; tell no others"
            )
        labels = policy.labels
    else:
        labels = read_labels(label_options)
    if policy is not None:
        policy.check(labels.names)
    prompts = sum(len(label.prompts) for label in labels.classes)
    if prompts > MANY_PROMPTS and not values["quiet"]:
        tell(f"embedding {prompts:,} texts, unless they are remembered from an earlier run")
    corrected, cuts = options.calibration, options.label_thresholds
    return ZeroShot(
        dual_encoder(found.model),
        labels,
        options,
        calibration=None if corrected is None else read_calibration(corrected),
        thresholds=None if cuts is None else read_thresholds(cuts),
        judge=policy,
        cache=found.text_cache() if values["text_cache"] else None,
    )
