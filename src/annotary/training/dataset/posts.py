"""Images with tags, wherever they stand: folders with sidecars, tables, Danbooru's posts, archives, COCO.

Every source becomes a row of posts in an order that is always the same, so that what is made of them is, too. What
cannot be had is a post all the same, with the reason in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from annotary.errors import UsageError
from annotary.evaluation._tables import SUFFIXES as TABLE_SUFFIXES
from annotary.records import Failure, Item
from annotary.sources import SourceOptions, webdataset
from annotary.sources._paths import kind_of

Tags: TypeAlias = tuple[tuple[str, str], ...]
"""Names and categories; an empty category where none is known."""

Separator = Literal["auto", "comma", "space", "line"]

SQLITE_SUFFIXES = (".sqlite", ".sqlite3", ".db")


class Post(NamedTuple):
    """An image and its tags.

    Attributes:
        id: What it is called in the dataset.
        item: The image, or why it cannot be had.
        tags: As its source has them.
        source: The number of the input that it is of.
        lost: What is missing behind it, in words, where an input breaks off: it may be thousands of images.
    """

    id: str
    item: Item | Failure
    tags: Tags
    source: int = 0
    lost: str = ""


@dataclass(frozen=True, slots=True)
class PostOptions:
    """Where images and tags are."""

    images: Path | None = field(default=None, metadata={"metavar": "FOLDER"})
    """Where the images of a table, a database or a COCO file are; beside it when nothing is said."""

    image_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Column of a table that holds images; otherwise the first with a usual name, such as image, file or url."""

    tag_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Column of a table that holds tags; otherwise the first with a usual name, such as tags or labels."""

    tag_separator: Separator = "auto"
    """What stands between tags in a text; auto takes line ends and commas, and else the whole text for one tag.
    Danbooru's `tag_string` is always read with spaces."""

    def __post_init__(self) -> None:
        if self.tag_separator not in ("auto", "comma", "space", "line"):
            raise ValueError(
                f"tag_separator must be auto, comma, space or line, but got {self.tag_separator!r}"
            )


def read_posts(
    inputs: Sequence[str], options: PostOptions, source: SourceOptions | None = None
) -> Iterator[Post]:
    """All posts of some inputs, one input after the other. Every input is understood before the first post is given.

    Args:
        inputs: Folders, tables, databases, tars, COCO files.
        options: Where images and tags are.
        source: Which files of a folder are taken, and how large an image of an archive may be.

    Raises:
        UsageError: There is no input, or one is none of these, or cannot be read; or a column is named, and none of
            them has columns.
        MissingExtra: An input needs an optional part to be read.
    """
    source = source or SourceOptions()
    if options.images is not None and not options.images.is_dir():
        raise UsageError(f"--images: no such folder: {str(options.images)!r}")
    if not inputs:
        raise UsageError("name at least one folder, table, database or archive of images with tags")
    readers = [(_reader_of(one), one) for one in inputs]
    _check_columns(readers, options, source)
    return (
        post._replace(source=number) if number else post
        for number, (reader, one) in enumerate(readers)
        for post in reader(one, options, source)
    )


def split_tags(text: str, separator: Separator) -> list[str]:
    r"""The tags of a text, without what stands around them; `\(` becomes `(`, as trainers of diffusion models write.

    Args:
        text: It.
        separator: What stands between them.
    """
    if separator == "space":
        return text.split()
    mark = {"auto": r"[,\n]", "comma": ",", "line": r"\n"}[separator]
    parts = (" ".join(part.split()) for part in re.split(mark, text))
    return [_ESCAPED.sub(r"\1", part) for part in parts if part]


_ESCAPED = re.compile(r"\\([()])")

_NAMESPACES = {
    **{name: name for name in ("general", "character", "copyright", "artist", "meta", "species")},
    "series": "copyright",
    "creator": "artist",
    **{
        name: name
        for name in (
            "action", "animal", "building", "clothing", "colour", "food", "nature", "object", "people", "plant",
            "scene", "style", "symbol", "time", "vehicle",
        )
    },
}  # fmt: skip
"""What hydrus calls kinds of tags, and ours for them; then the categories of the starter's tags, which
`--format hydrus` writes as namespaces."""


def without_namespace(tag: str) -> tuple[str, str]:
    """A tag of a text and its category: `character:samus` is a `samus` of the category `character`.

    Other namespaces stay in the name, as many are none, and so does `rating:`, without which `general` says little.

    Args:
        tag: As hydrus and others write it.
    """
    namespace, mark, name = tag.partition(":")
    namespace, name = namespace.strip().lower(), name.strip()
    if mark and name and namespace == "rating":
        return f"rating:{name}", "rating"
    category = _NAMESPACES.get(namespace, "")
    return (name, category) if mark and name and category else (tag, "")


_Reader: TypeAlias = Callable[[str, PostOptions, SourceOptions], Iterator[Post]]


def _reader_of(place: str) -> _Reader:
    """What reads an input."""
    # Imported here, as they import this module.
    from annotary.training.dataset import _post_archives, _post_folders, _post_tables

    if kind_of(place) == "folder":
        return _post_folders.folder_posts
    if webdataset.accepts(place):
        return _post_archives.tar_posts
    if kind_of(place) != "file":
        raise UsageError(f"no such file or folder: {place!r}")
    suffix = Path(place).suffix.lower()
    if suffix in SQLITE_SUFFIXES:
        return _post_archives.sqlite_posts
    if suffix == ".json":
        return _post_tables.json_posts
    if suffix in TABLE_SUFFIXES:
        return _post_tables.table_posts
    known = ", ".join((*TABLE_SUFFIXES, ".json", ".tar", *SQLITE_SUFFIXES))
    raise UsageError(f"{place!r} holds no images with tags; give a folder or a file in {known}")


def _check_columns(
    readers: Sequence[tuple[_Reader, str]], options: PostOptions, source: SourceOptions
) -> None:
    """Refuse a column that nothing would be read of.

    Raises:
        UsageError: A column is named, and no input has columns.
    """
    from annotary.training.dataset._post_archives import tar_posts
    from annotary.training.dataset._post_folders import folder_posts, has_rows
    from annotary.training.dataset._post_tables import json_posts, table_posts

    with_columns: tuple[_Reader, ...] = (table_posts, json_posts)
    told = (
        ("--image-column", options.image_column, with_columns, "no input is a table"),
        ("--tag-column", options.tag_column, (*with_columns, tar_posts), "no input has columns"),
    )
    for flag, column, usable, why in told:
        if column is None or any(reader in usable for reader, _ in readers):
            continue
        takes_json = flag == "--tag-column"
        folders = [one for reader, one in readers if reader is folder_posts]
        if not any(has_rows(one, source, takes_json=takes_json) for one in folders):
            raise UsageError(f"{flag} {column} has no effect: {why}; leave it out")
