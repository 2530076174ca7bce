"""Why nothing was left of some inputs, in a few words: the first failure, or where tags were looked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from annotary.errors import AnnotaryError
from annotary.evaluation._tables import SUFFIXES, Table
from annotary.records import Item
from annotary.sources import SourceOptions
from annotary.sources._paths import kind_of
from annotary.sources.folder import walk
from annotary.training.dataset._post_folders import METADATA, SIDECARS, sidecar_of
from annotary.training.dataset.choosing import Dropped
from annotary.training.dataset.collecting import PostTable
from annotary.training.dataset.posts import PostOptions


def why_nothing(
    inputs: Sequence[str],
    options: PostOptions,
    source: SourceOptions,
    table: PostTable,
    dropped: Sequence[Dropped],
) -> str:
    """What explains that nothing was left; empty where the counts say all.

    Args:
        inputs: Folders, tables, databases, tars, COCO files.
        options: Where images and tags are.
        source: Which files of a folder are taken.
        table: All posts.
        dropped: The images that were left out, by place.
    """
    told = []
    failed = next((one for one in dropped if one.why == "unreadable" and one.told), None)
    if failed is not None:
        image = table.images[failed.place]
        why = failed.told.removeprefix(f"{image}: ")
        told.append(f"the first: {image}: {why}")
    counts = Counter(one.why for one in dropped)
    if counts["no tags"] and counts["no tags"] + counts["unreadable"] == len(table):
        told.append(_where_tags_were_looked_for(inputs[0], options, source))
    return "; ".join(one for one in told if one)


def _where_tags_were_looked_for(place: str, options: PostOptions, source: SourceOptions) -> str:
    """Why no image of an input has a tag."""
    if kind_of(place) == "folder":
        images = (one for one in walk(place, source) if isinstance(one, Item))
        found = next((sidecar for one in images if (sidecar := sidecar_of(one))), "")
        if not found:
            *some, last = SIDECARS
            return (
                f"no {', '.join(some)} or {last} was found beside the images of {place}, nor was there a"
                f" {' or '.join(METADATA)} that names them"
            )
        column = "" if options.tag_column is None else f" in {options.tag_column!r} (--tag-column)"
        return f"files beside the images of {place}, such as {found}, have no tags{column}"
    if options.tag_column is not None:
        return f"{place} has no tags in {options.tag_column!r} (--tag-column)"
    if Path(place).suffix.lower() in SUFFIXES:
        try:
            columns = ", ".join(map(repr, Table(Path(place)).columns[:20]))
        except AnnotaryError:
            return ""
        return f"{place} has no tags in a column with a usual name; choose one with --tag-column: {columns}"
    return ""
