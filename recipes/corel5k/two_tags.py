"""Puts 200 photos of two new tags, and others to test on, into folders, as somebody's own would be.

    python -m recipes.corel5k.two_tags --data ../shared/data --output build/two-tags

The photos are those of Corel5k that the starter was not trained on (every ninth). The tags, `wildlife` and
`townscape`, are not among the starter's; who has which follows from the words of the photos. `photos` gets 100 of
each, `aside` the others, and each photo has a text beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

FROM_EACH = 100

WORDS = {
    "wildlife": (
        "albatross anemone antelope bear bengal birds butterfly caribou cat coral cougar coyote crab cubs"
        " dall deer eagle elephant elk fish flight fox giraffe grizzly hawk herd iguana insect lion lizard"
        " lynx marine moose nest penguin porcupine rabbit reefs reptile rodent seals sheep snake squirrel"
        " tiger tusks whales wolf zebra leopard horses foals mare goat"
    ),
    "townscape": (
        "arch balcony barn bridge buildings cafe castle cathedral church city column cottage courtyard door"
        " facade hotel house hut lighthouse market monastery mosque palace pillar pyramid restaurant roofs"
        " ruins sculpture shops sidewalk skyline statue steps street temple tower town village window"
    ),
}
"""The words of Corel5k that tell each tag."""


def main() -> None:
    """Copy the photos, and say how many."""
    parser = argparse.ArgumentParser(prog="python -m recipes.corel5k.two_tags", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds corel5k")
    parser.add_argument("--output", type=Path, default=Path("build/two-tags"))
    values = parser.parse_args()
    photos: Path = values.data / "corel5k"
    words = {tag: set(text.split()) for tag, text in WORDS.items()}
    taken = dict.fromkeys(words, 0)
    for number, line in enumerate((photos / "index.jsonl").read_text("utf-8").splitlines()):
        row = json.loads(line)
        tags = [tag for tag in words if words[tag] & set(row["tags"])]
        if number % 9 != 8 or len(tags) != 1:
            continue
        folder = values.output / ("photos" if taken[tags[0]] < FROM_EACH else "aside")
        taken[tags[0]] += 1
        folder.mkdir(parents=True, exist_ok=True)
        copied = Path(shutil.copy(photos / row["file"], folder))
        copied.with_suffix(".txt").write_text(f"{tags[0]}\n", encoding="utf-8")
    print(", ".join(f"{count} of {tag}" for tag, count in taken.items()))


if __name__ == "__main__":
    main()
