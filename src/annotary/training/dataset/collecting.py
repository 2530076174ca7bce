"""All posts of a dataset, packed: names and tags as arrays, so that a million of them fit in memory."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError
from annotary.records import Failure, Item
from annotary.training.dataset.pictures import Measuring, PictureBook, measured
from annotary.training.dataset.posts import Post

UNTAGGED = -1
"""The row of a post without tags, whose picture is not looked at."""

OnPost = Callable[[int, int], None]
"""Is told how many posts are done, and how many of them cannot be trained on."""


class PostTable:
    """The posts in their order.

    Attributes:
        ids: One each, all different.
        images: Where each is: an absolute path, an address, or a name in an archive.
        raw: Names and categories of all tags, as sources have them, in the order in which they come up.
        rows: Of each post's picture in the book; `UNTAGGED` where it was not looked at.
        lost: What is missing where inputs break off, in words.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.images: list[str] = []
        self.rows = array("q")
        self.lost: list[str] = []
        self._tags, self._ends = array("i"), array("q", [0])
        self._inputs = array("q")
        self._place: dict[str, int] = {}
        self._categories: list[str] = []
        self._known_ids: set[str] = set()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def raw(self) -> list[tuple[str, str]]:
        """Names and categories of all tags, in the order in which they come up."""
        return list(zip(self._place, self._categories, strict=True))

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """int64[n + 1], where the tags of each post begin."""
        return np.frombuffer(self._ends, np.int64)

    @property
    def tags(self) -> npt.NDArray[np.int32]:
        """int32[m], places in `raw`."""
        return np.frombuffer(self._tags, np.int32) if self._tags else np.empty(0, np.int32)

    @property
    def inputs(self) -> npt.NDArray[np.int64]:
        """int64[n], the number of the input that each post is of."""
        return np.array(self._inputs, np.int64)

    def add(self, post: Post) -> None:
        """Add a post, whose row is not known yet."""
        image = _place_of(post.item)
        name = one_line(post.id)
        if name in self._known_ids:
            name = image if image not in self._known_ids else f"{image}#{len(self.ids)}"
        self._known_ids.add(name)
        self.ids.append(name)
        self.images.append(image)
        for tag, category in post.tags:
            place = self._place.setdefault(one_line(tag), len(self._place))
            if place == len(self._categories):
                self._categories.append(category)
            elif category and not self._categories[place]:
                self._categories[place] = category
            self._tags.append(place)
        self._ends.append(len(self._tags))
        self._inputs.append(post.source)
        if post.lost:
            self.lost.append(post.lost)
        self.rows.append(UNTAGGED)


def collect(
    posts: Iterable[Post],
    book: PictureBook,
    measuring: Measuring,
    *,
    workers: int,
    is_cached: bool,
    takes_untagged: bool,
    on_post: OnPost | None = None,
) -> PostTable:
    """All posts, with their pictures measured.

    Args:
        posts: They.
        book: Gets what is measured.
        measuring: How.
        workers: Threads that measure.
        is_cached: Whether reduced pictures are kept; without them every image must be a file.
        takes_untagged: Whether posts without tags are looked at.
        on_post: Is told of each post.

    Raises:
        UsageError: An image is no file, and no reduced pictures are kept.
        OutputError: Something cannot be written; what was measured stays.
    """
    table = PostTable()
    waiting: deque[int] = deque()
    bad = 0

    def wanted() -> Iterator[Item | Failure]:
        for post in posts:
            table.add(post)
            if post.tags or takes_untagged or isinstance(post.item, Failure):
                if not is_cached and isinstance(post.item, Item) and post.item.path is None:
                    raise UsageError(
                        f"{post.item.image} is no file, and training would have nothing to read; keep the cache on"
                    )
                waiting.append(len(table) - 1)
                yield post.item

    for done, row in enumerate(measured(wanted(), book, measuring, workers), 1):
        table.rows[waiting.popleft()] = row
        if on_post is not None:
            bad += bool(book.picture(row).why)
            on_post(done, bad)
    return table


def one_line(text: str) -> str:
    """A text that can stand on a line of a file: of bytes that are not UTF-8, escapes, as in our other tables."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def _place_of(item: Item | Failure) -> str:
    if isinstance(item, Item) and item.path is not None:
        path = os.path.abspath(item.path)  # noqa: PTH100 - a link stays what it is
        return path.encode("utf-8", "backslashreplace").decode()
    return item.image.encode("utf-8", "backslashreplace").decode()
