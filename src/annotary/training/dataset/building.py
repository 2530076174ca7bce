"""A dataset folder from images with tags, whole: measured, chosen, split, with reduced pictures and a report.

A run that was stopped, of whatever, goes on when the same command is given: pictures that were measured are known by
the journal in `_state`, and their reduced pictures are there. All else is worked out from these in seconds, in one
order, whatever the number of workers is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from annotary import __version__
from annotary.errors import NothingToDo, OutputError, UsageError
from annotary.images import DecodeOptions
from annotary.records import Item
from annotary.runtime import available_cores
from annotary.sinks import write_atomically
from annotary.sinks._parquet import import_pyarrow
from annotary.sources import Reader, SourceOptions
from annotary.sources._paths import kind_of, reason
from annotary.tasks.tag_rules import digest_of
from annotary.training.dataset.choosing import (
    Choice,
    Dropped,
    NothingLeft,
    SplitOptions,
    choose,
)
from annotary.training.dataset.collecting import OnPost, PostTable, collect
from annotary.training.dataset.explaining import why_nothing
from annotary.training.dataset.image_cache import CacheOptions, ImageCache
from annotary.training.dataset.index import DESCRIPTION, IMAGES, REPORT, SUMMARY
from annotary.training.dataset.knowledge import (
    InputKnowledge,
    Sources,
    absolute,
    knowledge_of,
)
from annotary.training.dataset.pictures import Measuring, Picture, PictureBook, in_order
from annotary.training.dataset.posts import PostOptions, read_posts
from annotary.training.dataset.summary_page import summary_page
from annotary.training.dataset.tables import as_json, write_folder
from annotary.training.dataset.tag_lists import TagListOptions, TagLists

STATE = "_state"

_SETTINGS, _PICTURES, _LOCK = "settings.json", "pictures.jsonl", "lock"
_FINISHED = "finished"  # is there when a dataset of these settings was finished once

_MEASURES = 1  # of what is measured of pictures; a journal of another version is not taken


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How the work is done."""

    transparent: Literal["drop", "white"] = "drop"
    """What becomes of images with transparency: they are left out, as JoyTag did, or put on white."""

    workers: int | None = None
    """Threads that read and reduce pictures; the number of cores when nothing is said."""

    on_existing: Literal["continue", "overwrite"] = "continue"
    """Go on with what an earlier run of the same settings has written to the folder, or make the dataset anew. Pictures
    that were measured and reduced in the same way are used again."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, but got {self.workers}")
        if self.transparent not in ("drop", "white"):
            raise ValueError(f"transparent must be drop or white, but got {self.transparent!r}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a dataset depends on.

    Attributes:
        inputs: Folders, tables, databases, tars, COCO files.
        posts: Where images and tags are.
        tags: Which tags are trained.
        split: Copies, and the validation set.
        cache: The reduced pictures.
        source: Which files of folders are taken.
        build: How the work is done.
    """

    inputs: tuple[str, ...]
    posts: PostOptions = field(default_factory=PostOptions)
    tags: TagListOptions = field(default_factory=TagListOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    build: BuildOptions = field(default_factory=BuildOptions)

    def settings(self) -> dict[str, Any]:
        """The same as JSON, in which files are told by their content."""
        split, posts = self.split, self.posts
        return {
            "inputs": [absolute(one) for one in self.inputs],
            "images": None if posts.images is None else absolute(os.fspath(posts.images)),
            "image_column": posts.image_column,
            "tag_column": posts.tag_column,
            "tag_separator": posts.tag_separator,
            "recursive": self.source.recursive,
            "include_files": list(self.source.include_files),
            "exclude_files": list(self.source.exclude_files),
            **self.tags.settings(),
            "duplicate_distance": split.duplicate_distance,
            "validation": split.validation,
            "positives": split.positives,
            "validation_distance": split.validation_distance,
            "validation_ids": digest_of(split.validation_ids),
            "seed": split.seed,
            **self.measuring_settings(),
        }

    def measuring_settings(self) -> dict[str, Any]:
        """What the journal and the reduced pictures depend on."""
        return {
            "measures": _MEASURES,
            "transparent": self.build.transparent,
            **self.cache.settings(),
        }


class Built(NamedTuple):
    """What was made.

    Attributes:
        folder: Where.
        counts: What there is, as `dataset.json` says.
        reasons: Why images were left out to how many.
        notes: What is worth a word.
        lost: Of these, what tells of inputs that break off.
    """

    folder: Path
    counts: dict[str, int]
    reasons: dict[str, int]
    notes: list[str]
    lost: list[str]


def build(recipe: Recipe, folder: Path, *, on_post: OnPost | None = None) -> Built:
    """Make a dataset, or go on with it.

    Args:
        recipe: What it is made of, and how.
        folder: Nobody else's folder.
        on_post: Is told how many posts were looked at, and how many of them cannot be trained on.

    Raises:
        UsageError: Something asked for cannot be had.
        NothingToDo: No image is left.
        OutputError: The folder holds something else, or cannot be written; what is done stays.
        MissingExtra: pyarrow is not installed.
    """
    import_pyarrow()
    lists = TagLists(recipe.tags)
    knowledge = knowledge_of(recipe.inputs, lists)
    posts = read_posts(recipe.inputs, recipe.posts, recipe.source)
    for one in recipe.inputs:
        if kind_of(one) == "folder" and _is_within(folder, Path(one)):
            raise UsageError(f"{folder} lies in {one}, which is read; choose an --output beside it")
    workers = recipe.build.workers or available_cores()
    with ExitStack() as stack:
        stack.enter_context(_taken(folder, recipe))
        book = PictureBook(folder / STATE / _PICTURES)
        stack.callback(book.close)
        reader = stack.enter_context(Reader(recipe.source))
        is_cached = recipe.cache.cache != "off"
        cache = ImageCache(folder / IMAGES, recipe.cache) if is_cached else None
        measuring = Measuring(
            reader,
            cache,
            keeps_transparent=recipe.build.transparent == "white",
            decode=DecodeOptions(),
        )
        table = collect(
            posts,
            book,
            measuring,
            workers=workers,
            is_cached=is_cached,
            takes_untagged=lists.minimum_tags == 0,
            on_post=on_post,
        )
        if not len(table):
            raise NothingToDo(f"no image in {', '.join(recipe.inputs)}")
        chosen = _chosen(recipe, folder, table, book, lists, knowledge)
        if cache is not None:
            _complete(recipe, cache, measuring, table, book, chosen, workers)
        return _write(recipe, folder, table, book, chosen, lists)


def _chosen(
    recipe: Recipe,
    folder: Path,
    table: PostTable,
    book: PictureBook,
    lists: TagLists,
    knowledge: tuple[InputKnowledge, ...] | None,
) -> Choice:
    """Choose images and tags; where nothing is left, write why.

    Raises:
        NothingToDo: Nothing is left.
        UsageError: The validation set that was asked for cannot be had.
    """
    try:
        return choose(table, book, lists, recipe.split, knowledge)
    except NothingLeft as error:
        report = {
            "error": str(error),
            "counts": {
                "posts": len(table),
                "dropped_images": len(error.dropped_images),
                "dropped_tags": len(error.dropped_tags),
            },
            "dropped_images_by_reason": error.reasons,
            "notes": table.lost,
            "dropped_tags": error.dropped_tags,
            "dropped_images": _told_images(table, error.dropped_images),
        }
        write_atomically(folder / REPORT, as_json(report))
        why = why_nothing(recipe.inputs, recipe.posts, recipe.source, table, error.dropped_images)
        told = "; ".join(one for one in (str(error), why, *table.lost[:1]) if one)
        raise NothingToDo(f"{told}; see {folder / REPORT}") from error


def _complete(
    recipe: Recipe,
    cache: ImageCache,
    measuring: Measuring,
    table: PostTable,
    book: PictureBook,
    chosen: Choice,
    workers: int,
) -> None:
    """Make the reduced pictures that an earlier run has removed, and remove those that are not in the dataset.

    Raises:
        OutputError: An image has changed, or is gone, while the dataset was made.
    """
    places = [*chosen.train.tolist(), *chosen.validation.tolist()]
    wanted = {place: book.picture(table.rows[place]).sha256 for place in places}
    missing = {place: sha256 for place, sha256 in wanted.items() if not cache.has(sha256)}
    if missing:

        def items() -> Iterator[tuple[int, Item]]:
            posts = read_posts(recipe.inputs, recipe.posts, recipe.source)
            for place, post in enumerate(posts):
                if place in missing and isinstance(post.item, Item):
                    yield place, post.item

        def again(one: tuple[int, Item]) -> Picture:
            return measuring.measure(one[1])

        for (place, _), picture in in_order(items(), again, workers):
            if picture.sha256 == missing[place]:
                del missing[place]
    if missing:
        first = table.images[min(missing)]
        raise OutputError(
            f"{first} has changed or gone while the dataset was made; give the same command again"
        )
    cache.prune(set(wanted.values()))


def _write(
    recipe: Recipe,
    folder: Path,
    table: PostTable,
    book: PictureBook,
    chosen: Choice,
    lists: TagLists,
) -> Built:
    """Write all files of a dataset but the reduced pictures, which are there."""
    train = chosen.rows(chosen.train, table, book)
    validation = chosen.rows(chosen.validation, table, book)
    of_train = np.bincount(train.tags, minlength=len(chosen.tags))
    of_validation = np.bincount(validation.tags, minlength=len(chosen.tags))
    positives = recipe.split.positives
    counts = {
        "posts": len(table),
        "train": len(train.ids),
        "validation": len(validation.ids),
        "tags": len(chosen.tags),
        "dropped_images": len(chosen.dropped_images),
        "dropped_tags": len(chosen.dropped_tags),
        "tags_with_few_validation_images": int((of_validation < positives).sum()),
        "tags_without_training_images": int((of_train == 0).sum()),
    }
    notes = [*table.lost, *_notes(counts, chosen, positives)]
    report = {
        "counts": counts,
        "dropped_images_by_reason": chosen.reasons,
        "notes": notes,
        "renamed_tags": chosen.renamed,
        "dropped_tags": chosen.dropped_tags,
        "dropped_images": _told_images(table, chosen.dropped_images),
    }
    write_atomically(folder / REPORT, as_json(report))
    told = {
        "version": __version__,
        "cache_suffix": ImageCache(folder / IMAGES, recipe.cache).suffix,
        "minimum_count": lists.minimum_count,
        "minimum_tags": lists.minimum_tags,
        "settings": recipe.settings(),
        "counts": counts,
    }
    write_atomically(
        folder / SUMMARY,
        summary_page(folder, train, validation, chosen.tags, chosen.categories, told, report),
    )
    write_folder(folder, train, validation, chosen.tags, chosen.categories, told, chosen.sources)
    write_atomically(folder / STATE / _FINISHED, "")
    return Built(folder, counts, chosen.reasons, notes, list(table.lost))


def _told_images(table: PostTable, dropped: Sequence[Dropped]) -> list[dict[str, str]]:
    """The images that were left out, and why, as JSON."""
    return [
        {
            "id": table.ids[one.place],
            "image": table.images[one.place],
            "why": one.why,
            **({"told": one.told} if one.told else {}),
            **({"of": table.ids[one.of]} if one.of >= 0 else {}),
        }
        for one in dropped
    ]


def _notes(counts: dict[str, int], chosen: Choice, positives: int) -> list[str]:
    notes = []
    few, without = counts["tags_with_few_validation_images"], counts["tags_without_training_images"]
    if few and counts["validation"]:
        notes.append(
            f"{few:,} of {counts['tags']:,} tags have fewer than {positives} validation images"
        )
    if counts["train"] < counts["validation"]:
        notes.append(
            f"more images to measure on ({counts['validation']:,}) than to learn from"
            f" ({counts['train']:,})"
        )
    if without:
        tags_have = "1 tag has" if without == 1 else f"{without:,} tags have"
        notes.append(f"{tags_have} no training image")
    if alike := _told_alike(chosen.tags):
        notes.append(alike)
    if chosen.unknown_ids:
        many, first = len(chosen.unknown_ids), chosen.unknown_ids[0]
        notes.append(
            f"1 validation id is not in the dataset: {first}"
            if many == 1
            else f"{many:,} validation ids are not in the dataset, such as {first}"
        )
    if chosen.sources is not None:
        notes.append(_told_sources(chosen.sources, len(chosen.tags)))
    return notes


def _told_alike(tags: Sequence[str]) -> str:
    """How many tags are another one in all but case and underscores, which mostly are the same thing."""
    groups: dict[str, list[str]] = {}
    for tag in tags:
        groups.setdefault(" ".join(tag.replace("_", " ").casefold().split()) or tag, []).append(tag)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return ""
    *some, last = map(repr, alike[0][:3])
    return (
        f"{sum(map(len, alike)):,} tags differ from another only in case or underscores, such as"
        f" {', '.join(some)} and {last}; see --underscores and --aliases"
    )


def _told_sources(sources: Sources, tags: int) -> str:
    """How many tags the inputs know, in words."""
    told = [
        f"{Path(name).name} {tags if known is None else len(known):,}"
        for name, known in zip(sources.inputs, sources.known, strict=True)
    ]
    return f"of {tags:,} tags the inputs know: {', '.join(told)}"


@contextmanager
def _taken(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Have a folder for oneself, with these settings noted in it; it is no finished dataset from here on.

    Raises:
        OutputError: It holds something else, or another process works on it, or it holds, or held until it was begun
            anew, a finished dataset of other settings.
    """
    state = folder / STATE
    place = state / _SETTINGS
    settings = json.loads(json.dumps(recipe.settings()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not state.exists() and any(one.name[0] != "." for one in folder.iterdir()):
            raise OutputError(
                f"{folder} holds something else; choose an empty or a new folder as --output"
            )
        state.mkdir(exist_ok=True)
        with (state / _LOCK).open("ab") as lock:
            _lock(lock.fileno(), folder)
            known, finished = _known(place), state / _FINISHED
            if (folder / DESCRIPTION).exists():
                write_atomically(finished, "")
            if known is not None and known != settings:
                # Of what failed before there was a dataset nothing is lost with other settings.
                if recipe.build.on_existing == "continue" and finished.exists():
                    raise OutputError(_told_changes(folder, known, settings))
                names = recipe.measuring_settings()
                if {name: known.get(name) for name in (*names, "cache")} != {
                    name: settings.get(name) for name in (*names, "cache")
                }:
                    (state / _PICTURES).unlink(missing_ok=True)
                    shutil.rmtree(folder / IMAGES, ignore_errors=True)
                finished.unlink(missing_ok=True)
            (folder / DESCRIPTION).unlink(missing_ok=True)
            write_atomically(place, as_json(settings))
            yield
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {reason(error)}") from error


def _known(place: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(f"{place} is damaged; choose another --output") from error
    return found if isinstance(found, dict) else {}


def _told_changes(folder: Path, known: dict[str, Any], settings: dict[str, Any]) -> str:
    changed = [
        f"{name} was {_short(known.get(name))} and is now {_short(settings.get(name))}"
        for name in sorted({*known, *settings})
        if known.get(name) != settings.get(name)
    ]
    return (
        f"{folder} holds a dataset of other settings ({'; '.join(changed)});"
        " choose another --output, or say --on-existing overwrite"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock of an open file, where the system has locks.

    Raises:
        OutputError: Another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"another process is making the dataset in {folder}") from error
    except OSError:  # such as a network disk without locks
        return


def _is_within(inner: Path, outer: Path) -> bool:
    place, around = inner.resolve(), outer.resolve()
    return around in (place, *place.parents)
