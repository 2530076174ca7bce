"""A classifier that looks at each box of a detector, as `--compose` asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from annotary.cli._options import given, made
from annotary.errors import UsageError
from annotary.runtime import RuntimeOptions
from annotary.tasks.composing import ComposeOptions

if TYPE_CHECKING:
    from annotary.cli._annotating import Loaded
    from annotary.tasks.composing import Composed
    from annotary.tasks.detection import Detection


def check_compose(values: Mapping[str, Any]) -> ComposeOptions:
    """The options, if they make sense.

    Raises:
        UsageError: One is out of range, or says how a classifier looks that nobody asked for.
    """
    options = made(ComposeOptions, values)
    flags = list(given(values, ComposeOptions))
    if flags and not options.compose:
        raise UsageError(f"{flags[0]} is for --compose")
    return options


def composed(
    task: Detection,
    values: Mapping[str, Any],
    load: Callable[[str, RuntimeOptions], Loaded],
) -> tuple[Composed, dict[str, Any]]:
    """A task whose boxes are classified, and what they depend on.

    Args:
        task: Finds the boxes.
        values: Of the command's options: those of labels, `ComposeOptions`, `RuntimeOptions` and `text_cache`.
        load: Loads a model by name.

    Raises:
        UsageError: The options make no sense, or the model does not know texts.
    """
    from annotary.tasks.composing import Composed
    from annotary.tasks.encoding import dual_encoder
    from annotary.tasks.label_sets import LabelOptions, read_labels
    from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions

    options = check_compose(values)
    # Its templates are its own: those that a detector likes are others.
    told = ("labels", "labels_file", "ontology")
    labels = read_labels(
        LabelOptions(
            **{name: values[name] for name in told}, background=values.get("background") or ()
        )
    )
    found = load(options.compose_model, made(RuntimeOptions, values))
    classifier = ZeroShot(
        dual_encoder(found.model),
        labels,
        ZeroShotOptions(top=1),
        thresholds=dict.fromkeys(labels.names, 0.0),
        cache=found.text_cache() if values["text_cache"] else None,
    )
    both = Composed(task, classifier, options)
    settings = both.settings()
    settings["compose"] = {**settings["compose"], "weights": found.weights}
    return both, settings
