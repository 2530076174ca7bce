"""Posts of WebDataset tars, and of DeepDanbooru's database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from annotary.errors import UnreachableImage, UsageError
from annotary.records import Failure, Item
from annotary.sources import SourceOptions
from annotary.sources._paths import join, kind_of, reason
from annotary.sources._tar import ERRORS, Tar, open_tar
from annotary.sources.folder import has_image_suffix
from annotary.sources.webdataset import _open, _split, _tars
from annotary.training.dataset._post_tables import danbooru_item, tags_of_row
from annotary.training.dataset.posts import Post, PostOptions, Tags, split_tags, without_namespace

_LONGEST_TEXT = 1 << 24  # bytes of a member that is no image


def tar_posts(place: str, options: PostOptions, source: SourceOptions) -> Iterator[Post]:
    """The samples of WebDataset tars: an image, and its tags in a `.json` or a `.txt`."""
    for tar in _tars(place):
        count = 0
        try:
            with _open(tar, source) as file, open_tar(file) as archive:
                for post in _samples(archive, tar, options, source):
                    count += isinstance(post.item, Item)
                    yield post
            continue
        except UnreachableImage as error:
            why = str(error)
        except OSError as error:
            why = reason(error)
        except ERRORS as error:
            why = str(error)
        many = "1 image" if count == 1 else f"{count:,} images"
        lost = f"is cut off after {many}" if count else "cannot be read"
        failure = UnreachableImage(f"not all of this archive can be read: {why}")
        yield Post(tar, Failure.of(tar, failure), (), lost=f"{tar} {lost}: {why}")


class _Sample:
    """What was found of a sample.

    Args:
        key: Of the sample.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.item: Item | Failure | None = None
        self.json_tags: Tags = ()
        self.text_tags: Tags = ()
        self.problem = ""

    def post(self) -> Iterator[Post]:
        """The post, if there is an image."""
        if self.item is not None:
            item = self.item
            if self.problem:
                item = Failure.of(item.image, UnreachableImage(self.problem))
            name = item.relative if isinstance(item, Item) else item.image
            yield Post(name, item, self.json_tags or self.text_tags)


def _samples(archive: Tar, tar: str, options: PostOptions, source: SourceOptions) -> Iterator[Post]:
    sample = _Sample("")
    for member in archive:
        if not member.isreg():
            continue
        key, ending = _split(member.name)
        if key != sample.key:
            yield from sample.post()
            sample = _Sample(key)
        name = f"{tar}/{member.name}"
        if has_image_suffix(member.name):
            if member.size > source.max_bytes:
                why = f"larger than {source.max_bytes:,} bytes (--max-bytes)"
                sample.item = Failure.of(name, UnreachableImage(why))
            else:
                sample.item = Item(name, data=archive.content(member), relative=member.name)
        elif ending in ("json", "txt") and member.size <= _LONGEST_TEXT:
            try:
                text = archive.content(member).decode("utf-8-sig")
                if ending == "txt":
                    sample.text_tags = tuple(
                        map(without_namespace, split_tags(text, options.tag_separator))
                    )
                elif isinstance(row := json.loads(text), dict):
                    sample.json_tags = tags_of_row(row, options)
            except (ValueError, RecursionError) as error:
                sample.problem = f"{member.name} cannot be read: {error}"
    yield from sample.post()


def sqlite_posts(place: str, options: PostOptions, source: SourceOptions) -> Iterator[Post]:  # noqa: ARG001
    """The posts of DeepDanbooru's database, in the order of their numbers; images are at `images/xx/MD5.EXT` beside it.

    Raises:
        UsageError: It is no such database.
    """
    beside = str(Path(place).parent)
    folder = join(beside, "images") if options.images is None else str(options.images)
    if options.images is None and kind_of(folder) != "folder":
        raise UsageError(
            f"{place}: there is no folder {folder!r}; say where the images are with --images"
        )
    try:
        connection = sqlite3.connect(f"file:{quote(str(Path(place).resolve()))}?mode=ro", uri=True)
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        known = [row[1] for row in connection.execute("PRAGMA table_info(posts)")]
        missing = [name for name in ("id", "md5", "file_ext", "tag_string") if name not in known]
        if missing:
            raise UsageError(
                f"{place} has no table of posts with {', '.join(missing)}, as DeepDanbooru's has it"
            )
        wanted = ["id", "md5", "file_ext", "tag_string", "rating"]
        wanted += [name for name in known if name.startswith("tag_string_")]
        columns = [name for name in wanted if name in known]
        query = f"SELECT {', '.join(columns)} FROM posts ORDER BY id"
        for cells in connection.execute(query):
            row = dict(zip(columns, cells, strict=True))
            name = str(row["id"])
            item = danbooru_item(row, f"{place}:{name}", folder, may_fetch=False)
            yield Post(name, item, tags_of_row(row, options))
        connection.close()
    except sqlite3.Error as error:
        raise UsageError(f"{place} cannot be read: {error}") from error
