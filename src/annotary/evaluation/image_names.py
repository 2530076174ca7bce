"""Which image a name means, when two files call the same images by paths that start elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


class ImageNames:
    """Names of images that are looked up by other names of the same images.

    A name means an image that is called so; else the one whose path ends with it, or that it ends with
    (``photos/a.jpg`` and ``/data/photos/a.jpg``). Where that could be several, it means none of them.

    Args:
        names: Of all images.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name: place for place, name in reversed(list(enumerate(names)))}
        self._by_last: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for name, place in self._exact.items():
            parts = _parts(name)
            self._by_last[parts[-1]].append((parts, place))

    def find(self, name: str) -> int | None:
        """The place of the image that a name means; None when it means none."""
        if name in self._exact:
            return self._exact[name]
        parts = _parts(name)
        candidates = self._by_last.get(parts[-1], [])
        same = {place for own, place in candidates if own == parts}
        ending = same or {place for own, place in candidates if _is_end(own, parts)}
        return next(iter(ending)) if len(ending) == 1 else None


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path without where it starts."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return tuple(parts) or ("",)


def _is_end(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether the shorter path is the end of the longer one."""
    shared = min(len(first), len(second))
    return first[-shared:] == second[-shared:]
