"""Which images are for measuring: JoyTag's rule, so that rare tags can be measured, too.

The images are shuffled. As long as a tag has too few positives in the validation set, only images come into it that
have such a tag; when all have enough, the rest of it is filled at random. (JoyTag: 32,768 images with at least 5 of
each tag, where a tag had at least 1,200 images.)

Here a tag may have few images. At most half of them are asked for, so that some are left to learn from, and an image
that is the last one to learn a tag from comes into the validation set only where there is no other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def validation_rows(
    offsets: npt.NDArray[np.int64],
    tags: npt.NDArray[np.int32],
    tag_count: int,
    size: int,
    *,
    positives: int,
    seed: int,
) -> npt.NDArray[np.int64]:
    """The rows of the validation set, int64[size or fewer], ascending.

    Args:
        offsets: int64[n + 1], where the tags of each image begin.
        tags: int32[m], of the images.
        tag_count: How many tags there are.
        size: Images that are wanted; all but one at most.
        positives: Images of each tag that are wanted.
        seed: Of the shuffle.
    """
    rows = len(offsets) - 1
    size = max(0, min(size, rows - 1))
    shuffled = np.random.default_rng(seed).permutation(rows)
    counts = np.bincount(tags, minlength=tag_count)
    missing = np.minimum(counts // 2, positives).tolist()
    left = sum(1 for number in missing if number)
    chosen: list[int] = []
    rest: list[int] = []
    to_learn = counts.tolist()
    for place, row in enumerate(shuffled.tolist()):
        if not left or len(chosen) >= size:
            rest += shuffled[place:].tolist()
            break
        own = tags[offsets[row] : offsets[row + 1]].tolist()
        if not any(missing[tag] > 0 for tag in own) or any(to_learn[tag] < 2 for tag in own):
            rest.append(row)
            continue
        chosen.append(row)
        for tag in own:
            missing[tag] -= 1
            left -= missing[tag] == 0
            to_learn[tag] -= 1
    last: list[int] = []
    for row in rest:
        if len(chosen) >= size:
            break
        own = tags[offsets[row] : offsets[row + 1]].tolist()
        if any(to_learn[tag] < 2 for tag in own):
            last.append(row)
            continue
        chosen.append(row)
        for tag in own:
            to_learn[tag] -= 1
    chosen += last[: size - len(chosen)]
    return np.sort(np.array(chosen, np.int64))
