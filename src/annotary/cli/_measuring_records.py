"""What commands that measure tasks share: the records of images whose truth is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from annotary.cli._options import made
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.records import Annotation, Failure, Item

if TYPE_CHECKING:
    from annotary.tasks import Task


def annotated(
    items: Iterable[Item | Failure], count: int, task: Task, verb: str, values: Mapping[str, Any]
) -> tuple[list[Annotation], list[Failure]]:
    """What a task says of some images, in their order; an image that cannot be had does not end the run.

    Args:
        items: The images.
        count: How many there are.
        task: What is asked of each.
        verb: What is being done, for the progress bar.
        values: The values of the options.
    """
    from annotary.cli._progress import progress_bar
    from annotary.pipeline import Outcome
    from annotary.pipeline.local import annotate
    from annotary.sources import Reader, SourceOptions

    records: list[Annotation] = []
    failures: list[Failure] = []
    outcome = Outcome()
    options = made(DecodeOptions, values), made(PipelineOptions, values)
    with (
        Reader(SourceOptions()) as reader,
        progress_bar(verb, lambda: count, quiet=values["quiet"]) as bar,
    ):
        for result in annotate(items, [task], reader, *options):
            if isinstance(result.record, Failure):
                failures.append(result.record)
                outcome.failed += 1
            else:
                records.append(result.record)
                outcome.done += 1
            bar.update(outcome)
    return records, failures
