"""Posts of tables and JSON: our own records, tables of anybody, Danbooru's posts, kohya's `meta.json`, COCO."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from annotary.errors import UnreachableImage, UsageError
from annotary.evaluation._tables import Row, Table
from annotary.evaluation.labelled import LABEL_COLUMNS
from annotary.records import Failure, Item
from annotary.sources import SourceOptions
from annotary.sources._columns import COLUMNS, place_in
from annotary.sources._paths import join, kind_of, reason
from annotary.sources._rows import LONGEST_ROW, image_at
from annotary.sources.folder import IMAGE_SUFFIXES
from annotary.training.dataset.posts import Post, PostOptions, Tags, split_tags, without_namespace

_TAG_COLUMNS = ("tags", *(name for name in LABEL_COLUMNS if name != "tags"), "caption")
"""Usual names of what holds tags, the likeliest first."""

_DANBOORU = ("general", "character", "copyright", "artist", "meta")
"""Danbooru's categories, as the parts `tag_string_general` and so on."""

_NUMBERED = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"}
"""The numbers that Danbooru has for them."""

RATINGS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
"""What ratings stand for on Danbooru since 2022; before, `s` was safe, and there was no `g`."""

_NEEDED = (
    *("id", "image_id", "md5", "file_ext", "file_url", "rating", "tag_string"),
    *(f"tag_string_{name}" for name in _DANBOORU),
    *(f"{name}_tags" for name in _DANBOORU),
)

_USUAL_ENDINGS = ("jpg", "png", "webp", "jpeg", "gif")
"""Of images of which only the number is known, the likeliest first."""


def table_posts(place: str, options: PostOptions, source: SourceOptions) -> Iterator[Post]:  # noqa: ARG001
    """The posts of a table: one a row."""
    path = Path(place)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, found in _json_lines(path):
            name = f"{place}:{number}"
            if isinstance(found, str):
                yield Post(name, Failure.of(name, UnreachableImage(found)), ())
            else:
                yield _post(found, name, path.parent, options)
        return
    table = Table(path)
    told = (options.image_column, options.tag_column)
    for column, flag in zip(told, ("--image-column", "--tag-column"), strict=True):
        if column is not None:
            table.column(column, (), flag, "")
    wanted = {*COLUMNS, *_TAG_COLUMNS, *_NEEDED, *told}
    columns = [column for column in table.columns if column in wanted]
    for row in table.rows(columns):
        name = f"{place}:{row.number}"
        yield _post(dict(row.cells), name, path.parent, options, table, row)


def json_posts(place: str, options: PostOptions, source: SourceOptions) -> Iterator[Post]:  # noqa: ARG001
    """The posts of a JSON file: COCO, kohya's `meta.json`, or a list of records.

    Raises:
        UsageError: It cannot be read, or is none of these.
    """
    path = Path(place)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig", errors="surrogateescape"))
    except OSError as error:
        raise UsageError(f"{place}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}") from error
    if isinstance(found, list):
        for number, row in enumerate(found, 1):
            yield _post(
                row if isinstance(row, dict) else {}, f"{place}:{number}", path.parent, options
            )
    elif isinstance(found, dict) and {"images", "annotations"} <= found.keys():
        yield from _coco(found, path, options)
    elif isinstance(found, dict) and found and all(isinstance(one, dict) for one in found.values()):
        for image, row in found.items():
            tags = tags_of_row(row, options)
            yield Post(image, _with_suffix(image, _folder(path.parent, options)), tags)
    else:
        raise UsageError(
            f"{place} is neither COCO nor kohya's meta.json nor a list of records; nothing else is read from .json"
        )


def json_object(text: str) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        ValueError: It is none.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def tags_of_row(row: Mapping[str, Any], options: PostOptions) -> Tags:
    """The tags that a JSON object or a row of a table has.

    Args:
        row: A record of ours, a post of Danbooru, or whatever has a column of tags.
        options: Which column, and what stands between tags in a text.

    Raises:
        ValueError: There are some, but they are neither texts nor objects with a name.
    """
    if options.tag_column is None and _is_danbooru(row):
        tags = [
            (tag, name)
            for name in _DANBOORU
            for tag in str(row.get(f"tag_string_{name}") or "").split()
        ]
        known = {tag for tag, _ in tags}
        tags += [(t, "") for t in str(row.get("tag_string") or "").split() if t not in known]
        return (*tags, *_rating(row))
    if options.tag_column is not None:
        cell = row.get(options.tag_column)
    else:
        cell = next((row[one] for one in _TAG_COLUMNS if row.get(one) not in (None, "", [])), None)
    if cell is None and options.tag_column is None and _has_parts(row):
        return (*_parts(row), *_rating(row))
    cells = split_tags(cell, options.tag_separator) if isinstance(cell, str) else cell
    if isinstance(cells, int | float) and not isinstance(cells, bool):
        cells = [str(cells)]
    if cells is None:
        return ()
    if not isinstance(cells, Iterable):
        raise ValueError(f"tags must be texts, but got {cells!r}")
    found = tuple(tag for one in cells if (tag := _tag(one)) is not None)
    is_numbered = isinstance(cell, list) and any(
        isinstance(one, dict) and "id" in one for one in cell
    )
    return (*found, *_rating(row)) if is_numbered else found


def danbooru_item(
    row: Mapping[str, Any], name: str, folder: str, *, may_fetch: bool
) -> Item | Failure:
    """The image of a post of Danbooru, by its md5 or its number, as the known collections lay them out.

    Args:
        row: The post.
        name: What a failure is called.
        folder: Where images are.
        may_fetch: Whether the post's own address counts where there is no file.
    """
    told = str(row.get("file_ext") or "").lstrip(".")
    md5, number = str(row.get("md5") or ""), str(row.get("id", ""))
    tried = []
    for ending in (told,) if told.isalnum() else _USUAL_ENDINGS:
        if md5.isalnum():
            tried += [
                f"{md5[:2]}/{md5}.{ending}",
                f"{md5[:2]}/{md5[2:4]}/{md5}.{ending}",
                f"{md5}.{ending}",
            ]
        if number.isdecimal():
            # Danbooru2021 has a thousand folders, and its reduced version JPEGs alone.
            bucket = f"{int(number) % 1000:04d}"
            tried += [f"{bucket}/{number}.{ending}", f"{number}.{ending}", f"{bucket}/{number}.jpg"]
    for one in tried:
        path = join(folder, one)
        if kind_of(path) == "file":
            return Item.from_path(path, one)
    address = row.get("file_url")
    if may_fetch and isinstance(address, str) and address.startswith(("http://", "https://")):
        return Item(image=address, url=address)
    looked = tried[0] if tried else "a name"
    return Failure.of(
        name, UnreachableImage(f"{folder or '.'} has no {looked} nor other usual names of it")
    )


def _post(
    row: dict[str, Any],
    name: str,
    beside: Path,
    options: PostOptions,
    table: Table | None = None,
    table_row: Row | None = None,
) -> Post:
    """The post of a row."""
    folder = _folder(beside, options)
    given = options.image_column
    number = row.get("id") if row.get("id") is not None else row.get("image_id")
    if str(number).isdecimal() and given in (None, "image_id"):
        row, given = {**row, "id": number}, None
    column = given or next((one for one in COLUMNS if row.get(one) not in (None, "")), None)
    if (given is None and _is_danbooru(row)) or (
        column is None and (row.get("md5") or row.get("id"))
    ):
        inner = join(folder, "images")
        roots = (
            [folder]
            if options.images is not None or kind_of(inner) != "folder"
            else [inner, folder]
        )
        items = [danbooru_item(row, name, root, may_fetch=options.images is None) for root in roots]
        item = next((one for one in items if isinstance(one, Item)), items[0])
        number = row.get("id")
        identity = str(row.get("md5") or name) if number is None else str(number)
    else:
        cell = row.get(column) if column is not None else None
        if table is not None and table_row is not None:
            item = table.item(table_row, cell, folder)
        elif isinstance(cell, str) and cell.strip():
            item = image_at(place_in(cell, folder), folder)
        else:
            item = Failure.of(name, UnreachableImage(_NO_IMAGE))
        if isinstance(item, Failure) and item.message == _NO_IMAGE:
            item = Failure.of(name, UnreachableImage(_no_image(row, given, table)))
        identity = cell if isinstance(cell, str) and cell.strip() else item.image
    item = _told_where(item, folder, options)
    try:
        return Post(identity, item, tags_of_row(row, options))
    except ValueError as error:
        return Post(identity, Failure.of(name, UnreachableImage(str(error))), ())


def _coco(found: Mapping[str, Any], path: Path, options: PostOptions) -> Iterator[Post]:
    """The images of a COCO file; the categories of their boxes are their tags, supercategories the tags' categories."""
    try:
        names = {
            one["id"]: (str(one["name"]), str(one.get("supercategory") or ""))
            for one in found.get("categories") or ()
        }
        if not names:
            raise UsageError(f"{path} has no categories, which would be the tags")
        tags: dict[Any, dict[tuple[str, str], None]] = {}
        for one in found["annotations"]:
            tags.setdefault(one["image_id"], {})[names[one["category_id"]]] = None
        for image in found["images"]:
            name = str(image["file_name"])
            item = image_at(name, _folder(path.parent, options))
            if isinstance(item, Failure) and image.get("coco_url") and options.images is None:
                item = Item(image=image["coco_url"], url=image["coco_url"])
            item = _told_where(item, _folder(path.parent, options), options)
            yield Post(name, item, tuple(tags.get(image["id"], ())))
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is no COCO file: {error} is missing or wrong") from error


def _with_suffix(image: str, folder: str) -> Item | Failure:
    """An image that kohya's file names, which older versions do without its suffix."""
    item = image_at(place_in(image, folder), folder)
    if isinstance(item, Item) and (
        item.url is not None or kind_of(os.fspath(item.path or "")) == "file"
    ):
        return item
    for suffix in sorted(IMAGE_SUFFIXES):
        if kind_of(join(folder, image + suffix)) == "file":
            return Item.from_path(join(folder, image + suffix))
    return item


def _told_where(item: Item | Failure, folder: str, options: PostOptions) -> Item | Failure:
    """An image; where there is none in the usual place, its failure says how to name another place.

    Args:
        item: It.
        folder: Where it was looked for.
        options: Where images are.
    """
    if options.images is not None:
        return item
    if isinstance(item, Failure):
        if item.message.startswith(_NO_IMAGE):
            return item
        why = item.message
    elif folder in ("", ".") and item.path is not None and not kind_of(os.fspath(item.path)):
        why = "nothing has this name in the current folder"
    else:
        return item
    return Failure.of(
        item.image, UnreachableImage(f"{why}; say where the images are with --images")
    )


def _no_image(row: Mapping[str, Any], given: str | None, table: Table | None) -> str:
    """Why a row has no image, with the columns that may hold it."""
    if given is not None:
        return f"{_NO_IMAGE} in {given!r} (--image-column)"
    known = table.columns if table is not None else tuple(row)
    if not known or any(name in known for name in COLUMNS):
        return _NO_IMAGE
    listed = ", ".join(map(repr, known[:_MOST_NAMED]))
    return f"{_NO_IMAGE}; choose a column with --image-column: {listed}"


_NO_IMAGE = "this row names no image"
_MOST_NAMED = 20  # columns in a message


def _has_parts(row: Mapping[str, Any]) -> bool:
    return any(row.get(f"{name}_tags") is not None for name in _DANBOORU)


def _parts(row: Mapping[str, Any]) -> Tags:
    """The tags of the columns `general_tags`, `character_tags` and so on: lists, or texts with commas or spaces."""
    found = []
    for category in _DANBOORU:
        cell = row.get(f"{category}_tags")
        if isinstance(cell, str):
            cell = split_tags(cell, "comma" if "," in cell else "space")
        if cell is not None and not isinstance(cell, Iterable):
            raise ValueError(f"{category}_tags must be texts, but got {cell!r}")
        found += [(" ".join(str(one).split()), category) for one in cell or () if one is not None]
    return tuple(found)


def _is_danbooru(row: Mapping[str, Any]) -> bool:
    return "tag_string" in row or "tag_string_general" in row


def _rating(row: Mapping[str, Any]) -> Tags:
    rating = str(row.get("rating") or "").lower()
    told = rating if rating in RATINGS.values() else RATINGS.get(rating)
    return ((f"rating:{told}", "rating"),) if told else ()


def _tag(value: Any) -> tuple[str, str] | None:
    """A tag that is a text, a number, or an object with a name; None where it is null, which says nothing."""
    if isinstance(value, Mapping):
        if "name" not in value:
            raise ValueError(f"a tag must be text or have a name, but got {value!r}")
        name, category = value["name"], str(value.get("category") or "")
        if value.get("category") == 0:
            category = "0"
        value, category = name, _NUMBERED.get(category, category)
    elif isinstance(value, str):
        return without_namespace(" ".join(value.split()))
    else:
        category = ""
    if value is None:
        return None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"a tag must be text, but got {value!r}")
    return " ".join(str(value).split()), category


def _folder(beside: Path, options: PostOptions) -> str:
    return os.fspath(beside if options.images is None else options.images)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The objects of JSON Lines with their numbers, or what is wrong with a line."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_ROW):
                number += 1
                if not line.strip():
                    continue
                try:
                    found = json.loads(line.decode("utf-8-sig", "surrogateescape"))
                except (ValueError, RecursionError) as error:
                    yield number, f"this line is not JSON: {error}"
                    continue
                yield number, found if isinstance(found, dict) else "this line is no JSON object"
    except OSError as error:
        raise UsageError(f"{path}: {reason(error)}") from error
