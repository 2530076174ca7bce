"""A small dataset folder of painted pictures, and recipes small enough for tests."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from annotary.training.dataset.index import TagDataset
from annotary.training.dataset.knowledge import SOURCES, Sources
from annotary.training.recipe import TaggerRecipe, read_recipe

COLOURS = {"blue": (40, 60, 220), "green": (50, 180, 60), "red": (220, 40, 40)}
SHAPES = ("bar", "dot")
TAGS = ("bar", "dot", *COLOURS)
STEM = "conv:c=8;ln;relu;conv:c=12;ln;relu;conv:c=16,s=1,k=1,p=0"


def picture(generator: np.random.Generator) -> tuple[Image.Image, set[str]]:
    """A bar or a dot of a colour on a noisy ground, and its tags."""
    pixels = generator.integers(200, 256, (20, 20, 3), dtype=np.uint8)
    colour = str(generator.choice(list(COLOURS)))
    shape = str(generator.choice(SHAPES))
    if shape == "bar":
        pixels[int(generator.integers(0, 14)) :][:6] = COLOURS[colour]
    else:
        top, left = generator.integers(2, 10, 2)
        pixels[top : top + 7, left : left + 7] = COLOURS[colour]
    return Image.fromarray(pixels), {colour, shape}


def make_dataset(
    folder: Path, *, train: int = 24, validation: int = 10, is_partial: bool = False
) -> TagDataset:
    """A finished dataset folder with so many images.

    Args:
        folder: It is made.
        train: Images to learn from.
        validation: Images to measure on.
        is_partial: Of the first image only the shape is known, of the second only the colour, of the third both, and so
            on; that an image has not a colour counts half.
    """
    generator = np.random.default_rng(3)
    originals = folder / "originals"
    originals.mkdir(parents=True)
    for name, count in (("train", train), ("validation", validation)):
        rows = []
        for number in range(count):
            image, tags = picture(generator)
            path = originals / f"{name}{number:03}.png"
            image.save(path)
            own = sorted(TAGS.index(tag) for tag in tags)
            source = number % 3
            rows.append(
                {
                    "id": path.stem,
                    "tags": [tag for tag in own if not is_partial or is_known(source, tag)],
                    "sha256": hashlib.sha256(path.read_bytes()).digest(),
                    "image": str(path),
                    "source": source,
                }
            )
        columns = [
            ("id", pa.string()),
            ("tags", pa.list_(pa.int32())),
            ("sha256", pa.binary(32)),
            ("image", pa.string()),
        ]
        schema = pa.schema(columns + [("source", pa.int32())] * is_partial)
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{name}.parquet")
    (folder / "top_tags.txt").write_text("".join(tag + "\n" for tag in TAGS), encoding="utf-8")
    with (folder / "tags.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("index", "tag", "category", "train", "validation"))
        for place, tag in enumerate(TAGS):
            writer.writerow((place, tag, "shape" if tag in SHAPES else "colour", 8, 4))
    description: dict[str, object] = {"layout": 1, "cache_suffix": None}
    if is_partial:
        names, absent, groups = ("shapes", "colours"), (1.0, 0.5), ((0,), (1,), (0, 1))
        sources = Sources(names, ((0, 1), (2, 3, 4)), absent, groups)
        (folder / SOURCES).write_text(sources.text(), encoding="utf-8")
        description["sources"] = SOURCES
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return TagDataset(folder)


def is_known(source: int, tag: int) -> bool:
    """Whether images of a source of the partial dataset know a tag."""
    return source == 2 or (tag < len(SHAPES)) == (source == 0)


def small_recipe(*changed: str) -> TaggerRecipe:
    """JoyTag's recipe with a tiny network, for a few steps on one core."""
    return read_recipe(
        "joytag",
        (
            "data.batch_size=8",
            "data.device_batch_size=4",
            "data.workers=0",
            "data.minimum_tags=1",
            "network.num_blocks=2",
            "network.patch_size=4",
            "network.d_model=16",
            "network.mlp_dim=32",
            "network.num_heads=2",
            f"network.cnn_stem={STEM}",
            "network.stochastic_depth=0.2",
            "precision.numbers=fp32",
            "validation.every=32",
            "checkpoints.every=16",
            "stages=[{image_size=16, samples=48}, {image_size=20, samples=32}]",
            *changed,
        ),
    )
