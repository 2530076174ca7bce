"""What commands that annotate images share: inputs, options, a run under its bar, and how a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from annotary.cli._options import made, options_of
from annotary.cli._writing import Writing, without_sidecars
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sources import SourceOptions

if TYPE_CHECKING:
    from annotary.models import Model
    from annotary.pipeline import ScoreWriter
    from annotary.records import Failure, Item, Record
    from annotary.tasks import Task
    from annotary.tasks.policy import Policy
    from annotary.tasks.text_cache import TextCache

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_MODEL = "starter"

model_option = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="A name of `annotary models`, hf:OWNER/NAME or dir:PATH.",
)

policy_option = click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Decide to allow, review or block each image by its scores, with reasons.",
)

running_options = options_of(SourceOptions, DecodeOptions, PipelineOptions, RuntimeOptions)
"""Options of every command that reads images and runs networks."""


class Annotating:
    """Images of a command on their way through tasks to an output.

    Args:
        paths: The arguments.
        values: The values of the options.

    Attributes:
        writing: The output.
        runtime: How networks run.

    Raises:
        UsageError: Something that was told makes no sense. Nothing has been written.
    """

    def __init__(self, paths: Sequence[str], values: Mapping[str, Any]) -> None:
        from annotary.sources import open_sources

        if values.get("catalog") is not None:
            from annotary.catalog import check_installed

            check_installed()
        self._paths = without_sidecars(paths)
        self.writing = Writing(values, self._paths)
        self._judged = ("decision",) if values.get("policy") is not None else ()
        self.runtime = made(RuntimeOptions, values)
        self._source_options = made(SourceOptions, values)
        self._decode_options = made(DecodeOptions, values)
        self._pipeline_options = made(PipelineOptions, values)
        self._items = open_sources(self._paths, self._source_options)

    @property
    def decoding(self) -> dict[str, Any]:
        """What pixels depend on beside the model."""
        options = self._decode_options
        told: dict[str, Any] = {"reduce": options.reduce, "max_pixels": options.max_pixels}
        if options.transparency != "auto":
            told["transparency"] = options.transparency
        return told

    def pass_items(
        self, change: Callable[[Iterator[Item | Failure]], Iterator[Item | Failure]]
    ) -> None:
        """Let the images of the run go through something, which may add failures of what is not among them."""
        self._items = change(self._items)

    def check(self, *parts: str) -> None:
        """Refuse a format that cannot hold what will be found, before a model is loaded.

        Raises:
            UsageError: It cannot; the message lists those that can.
        """
        from annotary.sinks import check_parts

        if self.writing.form is not None:
            check_parts(self.writing.form, (*parts, *self._judged))

    def run(
        self,
        tasks: Sequence[Task],
        settings: Mapping[str, Any],
        verbs: tuple[str, str],
        line: Callable[[Record], str | None],
        open_scores: Callable[[], ScoreWriter | None] = lambda: None,
        *,
        classes: Sequence[str] = (),
    ) -> int:
        """Annotate all images and write the records.

        Args:
            tasks: What is asked of each image.
            settings: What the records depend on beside how images are decoded.
            verbs: What is done and has been done ("tagging", "tagged").
            line: What is printed for a record, where nothing is written.
            open_scores: Opens what keeps the scores of all tags, once the output is open.
            classes: What boxes may be labelled with, in their order.

        Returns:
            The exit code.
        """
        from annotary.pipeline import Run
        from annotary.sources import Reader

        items = chain(list(islice(self._items, 1)), self._items)  # a shard may be empty
        with ExitStack() as open_files:
            parts = [*(task.part for task in tasks if task.part), *self._judged]
            output = self.writing.open({**settings, **self.decoding}, line, parts, classes)
            reader = open_files.enter_context(Reader(self._source_options))
            try:
                scores = open_scores()
            except BaseException:
                output.close(complete=False)
                raise
            run = open_files.enter_context(
                Run(
                    *(items, tasks, output, reader, self._decode_options, self._pipeline_options),
                    scores,
                )
            )
            return self.writing.watch(run, output, verbs, self._count)

    def fill(
        self,
        path: Path,
        tasks: Sequence[Task],
        settings: Mapping[str, Mapping[str, Any]],
        verbs: tuple[str, str],
        *,
        replaces: bool = False,
    ) -> int:
        """Annotate the images that a catalogue does not hold, and those that have changed.

        Args:
            path: The catalogue.
            tasks: What is asked of each image.
            settings: Part of the records to what it depends on beside how images are decoded: `weights`, and the rest.
            verbs: What is done and has been done ("embedding", "embedded").
            replaces: Whether parts that were made with other settings are thrown away.

        Returns:
            The exit code.
        """
        from annotary.catalog import fill
        from annotary.cli._filling import watch_filling
        from annotary.sources import Reader

        with Reader(self._source_options) as reader:
            filling = fill(
                *(path, self._items, tasks, settings),
                *(reader, self._decode_options, self._pipeline_options),
                roots=self._paths,
                overwrite=self.writing.overwrites,
                replace_parts=replaces,
                retry_failed=self.writing.retries,
            )
            with filling:
                return watch_filling(filling, verbs, self._count, quiet=self.writing.is_quiet)

    @property
    def _count(self) -> Callable[[], int] | None:
        """Counts the images; None when nobody can know."""
        from annotary.sources import can_be_counted, open_sources

        if not can_be_counted(self._paths):
            return None
        return lambda: sum(1 for _ in open_sources(self._paths, self._source_options))


def tag_policy(path: Path | None, tags: Sequence[str]) -> Policy | None:
    """The policy of a file, of tags.

    Raises:
        UsageError: It cannot be read, or looks at something that is no tag of the model.
    """
    from annotary.tasks.policy import read_policy

    if path is None:
        return None
    policy = read_policy(path)
    if policy.labels is not None:
        raise UsageError(f"{path} has labels of its own, which need annotary classify")
    policy.check(tags)
    return policy


class Loaded(NamedTuple):
    """A model that is ready.

    Attributes:
        model: It.
        weights: A text that changes with its files, and with arithmetic that rounds differently.
        fingerprint: A text that changes with its files.
    """

    model: Model
    weights: str
    fingerprint: str

    def in_catalog(self, name: str) -> dict[str, Any]:
        """What a catalogue notes of the model that embeds its images.

        Args:
            name: What the user calls it.
        """
        place = name.removeprefix("dir:")
        # Vectors of other arithmetic are near enough to compare: the files decide.
        called = name if place == name else f"dir:{os.path.abspath(place)}"  # noqa: PTH100
        return {"name": called, "weights": self.fingerprint}

    def text_cache(self) -> TextCache:
        """What remembers the vectors of texts between runs."""
        from annotary.tasks.text_cache import TextCache

        return TextCache.of(self.fingerprint, self.model)


def loaded(name: str, options: RuntimeOptions) -> Loaded:
    """Load a model by name."""
    from annotary.models import find, load_model

    found = find(name, options)
    model, files = load_model(found, options), found.fingerprint()
    # Eight bits are a matter of the files.
    rounded = model.choice.precision in ("bf16", "fp16")
    return Loaded(model, f"{files}-{model.choice.precision}" if rounded else files, files)
