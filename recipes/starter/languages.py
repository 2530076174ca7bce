"""Measures the text tower in 16 languages on the descriptions of Tux Paint's stamps.

``python -m recipes.starter.languages --work build/starter``; with ``--before text.onnx`` beside another text tower. The
stamps (Debian package `tuxpaint-stamps-default`, GPL-2) took part in no training.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary.cards import read_card
from annotary.models import starter
from annotary.models._text_tower import TextTower
from annotary.runtime import RuntimeOptions
from recipes.starter import features, packages

Floats = npt.NDArray[np.float32]

PACKAGE = "tuxpaint-stamps-default"
SHIPPED = Path("src/annotary/weights/starter")

LANGUAGES = (
    *("ar", "zh_CN", "zh_TW", "nl", "fr", "de", "it", "ja", "ko", "pl", "pt", "ru", "es", "th"),
    "tr",
)
"""Beside English; Chinese in both scripts."""

_OPTIONS = RuntimeOptions(threads=1, runtime="onnxruntime")
_FIRST = 10


@dataclass(frozen=True)
class Stamps:
    """Pictures with a description in every language; each English one occurs once."""

    pictures: list[Path | None]
    """None where there is none in PNG."""

    texts: dict[str, list[str]]
    """Language to the descriptions, without the full stop."""


def fetch(work: Path) -> Path:
    """Download and unpack the stamps once; return their folder."""
    folder = work / "packages" / "stamps"
    if not folder.is_dir():
        temporary = packages.fresh(folder)
        subprocess.run(["apt-get", "download", PACKAGE], check=True, cwd=temporary)
        for package in sorted(temporary.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(temporary)], check=True)
            package.unlink()
        temporary.rename(folder)
    return folder / "usr" / "share" / "tuxpaint" / "stamps"


def read(folder: Path) -> Stamps:
    """Read the descriptions; letters and numbers are left out."""
    pictures: list[Path | None] = []
    texts: dict[str, list[str]] = {language: [] for language in ("en", *LANGUAGES)}
    for path in sorted(folder.rglob("*.txt"), key=str):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        own = {"en": lines[0].strip()}
        for line in lines[1:]:
            language, _, text = line.partition(".utf8=")
            own[language] = text.strip()
        english = own["en"]
        is_sign = re.search("letter|number", english.lower()) or not re.search("[a-z]", english)
        if is_sign or not all(own.get(language) for language in texts):
            continue
        if english.rstrip(" .") in texts["en"]:
            continue
        picture = path.with_suffix(".png")
        pictures.append(picture if picture.exists() else None)
        for language, kept in texts.items():
            kept.append(own[language].rstrip(" .。") or own[language])
    return Stamps(pictures, texts)


def measure(tower: TextTower, stamps: Stamps, images: Floats) -> dict[str, tuple[float, float]]:
    """Language to how often the English description, and the picture, is among the first ten."""
    vectors = {language: tower.embed(texts).vectors for language, texts in stamps.texts.items()}
    rows = [row for row, picture in enumerate(stamps.pictures) if picture]
    return {
        language: (_found(own @ vectors["en"].T), _found(own[rows] @ images.T))
        for language, own in vectors.items()
    }


def _found(cosines: Floats) -> float:
    """How often no more than nine others are nearer than the one of the same number."""
    return float(((cosines > cosines.diagonal()[:, None]).sum(1) < _FIRST).mean())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.languages")
    parser.add_argument("--work", type=Path, default=Path("build/starter"), help="work folder")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the starter")
    parser.add_argument("--before", type=Path, help="text.onnx to measure beside it")
    arguments = parser.parse_args()
    folder: Path = arguments.model
    stamps = read(fetch(arguments.work))
    model = starter.load(read_card(folder), folder, _OPTIONS)
    pictures = [features.view(features.load(p), features.View()) for p in stamps.pictures if p]
    images = np.concatenate([model.embed_images(picture[None]) for picture in pictures])
    print(f"{len(stamps.pictures)} descriptions, {len(pictures)} pictures")
    for path in filter(None, (arguments.before, folder / starter.TEXT_FILE)):
        tower = TextTower(path, folder / starter.TOKENIZER_FILE, _OPTIONS)
        found = measure(tower, stamps, images)
        others = np.mean([found[language] for language in LANGUAGES], axis=0)
        print(f"{path}: English in ten {others[0]:.3f}, picture in ten {others[1]:.3f}")
        print(", ".join(f"{name} {value[1]:.3f}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
