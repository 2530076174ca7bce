r"""Writes the starter's sources as inputs of `annotary train dataset`, each with the tags that it knows.

    python -m recipes.starter.dataset --data ../shared/data --work build/starter
    cd build/starter/inputs
    annotary train dataset corel.jsonl flickr.jsonl coco.jsonl emoji.jsonl clipart.jsonl --rules rules.toml \
        --validation-ids held_aside.txt --transparent white --output ../dataset
    annotary train tagger recipes/starter/starter.toml --data build/starter/dataset --output build/starter/run

The vocabulary and the images that are held aside are those of the whole recipe; styles, which are read from pixels,
and tags that rest on ImageNet alone are in no input. `starter.toml` then trains more of the network than its heads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.starter import packages, tables
from recipes.starter.heads import UNNAMED
from recipes.starter.tables import Example, Source, Vocabulary

INPUTS: tuple[Source, ...] = ("corel", "flickr", "coco", "emoji", "clipart")


def main() -> None:
    """Write the inputs, and say how many images each has."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.dataset", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the photos and labels"
    )
    parser.add_argument("--work", type=Path, default=Path("build/starter"))
    values = parser.parse_args()
    values.work.mkdir(parents=True, exist_ok=True)
    examples = tables.read_examples(values.data, packages.fetch_clipart(values.work))
    counts = write_inputs(examples, tables.read_vocabulary(), values.work / "inputs")
    print(", ".join(f"{count:,} of {source}" for source, count in counts.items()))


def write_inputs(
    examples: Sequence[Example], vocabulary: Vocabulary, folder: Path
) -> dict[Source, int]:
    """Write a table for each source, the rules, and which images are held aside.

    Args:
        examples: All images; those whose colours were changed are left out.
        vocabulary: The tags.
        folder: Where to.

    Returns:
        Source to how many of its images have a tag.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[Source, int] = {}
    held: list[str] = []
    rules = []
    for source in INPUTS:
        own = [e for e in examples if e.source == source and e.treatment == "none"]
        rows = []
        for example in own:
            tags = _tags(example, vocabulary)
            if tags:
                file = str(example.path.resolve())
                rows.append(json.dumps({"file": file, "tags": tags}, ensure_ascii=False))
                held += [file] if example.is_held_aside else []
        text = "".join(f"{row}\n" for row in rows)
        (folder / f"{source}.jsonl").write_text(text, encoding="utf-8")
        known = [vocabulary.names[i] for i in np.flatnonzero(_knows(source, vocabulary))]
        rules.append(
            f'[[inputs]]\npath = "{source}.jsonl"\nabsent = {UNNAMED[source]}\n'
            f"known_tags = {json.dumps(known, ensure_ascii=False)}\n"
        )
        counts[source] = len(rows)
    (folder / "rules.toml").write_text("\n".join(rules), encoding="utf-8")
    (folder / "held_aside.txt").write_text("".join(f"{file}\n" for file in held), encoding="utf-8")
    return counts


def _tags(example: Example, vocabulary: Vocabulary) -> list[str]:
    """What its source says of an image, as tags of the vocabulary."""
    words = vocabulary.words[tables.WORDS_OF[example.source]]
    numbers = {number for word in example.words & words.keys() for number in words[word]}
    return [vocabulary.names[number] for number in sorted(numbers)]


def _knows(source: Source, vocabulary: Vocabulary) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """``[tags]``: which tags a source would name."""
    return vocabulary.teaches(tables.WORDS_OF[source])


if __name__ == "__main__":
    main()
