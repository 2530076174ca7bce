"""Trains taggers of JoyTag's architecture from chance on Corel5k: a sweep, then the best of it in two stages.

    python -m recipes.corel5k --data ../shared/data --work build/corel5k

The sweep learns from 3,500 photos and is measured on 500 others; the run in two stages learns from both, and is
measured on the 500 that are kept aside (every ninth), which nothing was chosen on. Everything goes through the
commands that anybody has: `annotary train dataset`, `train tagger` and `train curves`; what is finished is not done
again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recipes.corel5k.five_tags import ASIDE, log_odds, read_photos
from recipes.starter.report import corel_protocol

RECIPE = Path(__file__).with_name("corel5k.toml")
PICTURES = Path("docs/training")

TUNING = 7
"""Photos whose number leaves this by nine are those that the sweep is measured on; `ASIDE` are kept aside."""

SWEEP_SAMPLES = 100_000
SWEEP: Mapping[str, tuple[str, ...]] = {
    "base": (),
    "no-stem": ("network.cnn_stem=",),
    "no-trivial": ("augmentation.kind=none",),
    "no-stem-no-trivial": ("network.cnn_stem=", "augmentation.kind=none"),
}
"""What each run of the sweep changes: 96 pixels, `SWEEP_SAMPLES` images."""

FASTER = ("data.workers=0", "data.cache_mb=400")
"""Photos are so few that all lie decoded in memory; two runs share two cores."""


def main() -> None:
    """Make the datasets, train, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m recipes.corel5k", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds corel5k")
    parser.add_argument("--work", type=Path, default=Path("build/corel5k"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, a core each")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the curves")
    values = parser.parse_args()
    photos, work = values.data / "corel5k", values.work
    whole = make_dataset(photos, work / "whole", aside=ASIDE, left_out=None)
    tuning = make_dataset(photos, work / "tuning", aside=TUNING, left_out=ASIDE)
    stages = f"stages=[{{image_size=96, samples={SWEEP_SAMPLES}}}]"
    with ThreadPoolExecutor(values.jobs) as pool:
        list(
            pool.map(
                lambda name: train(tuning, work / "sweep" / name, (stages, *SWEEP[name])), SWEEP
            )
        )
    best = train(whole, work / "run", (), threads=values.jobs)
    pictures: Path = values.pictures
    draw([work / "sweep" / name for name in SWEEP], pictures / "corel5k-sweep.svg")
    draw([work / "run"], pictures / "corel5k.svg")
    print(json.dumps(protocol(best, photos), indent=1))


def make_dataset(photos: Path, output: Path, *, aside: int, left_out: int | None) -> Path:
    """A dataset of the photos.

    Args:
        photos: Folder with `index.jsonl`.
        output: The dataset.
        aside: What is measured on: photos whose number leaves this by nine.
        left_out: Photos whose number leaves this are not used at all; None uses all.
    """
    rows = [
        (number % 9, line)
        for number, line in enumerate((photos / "index.jsonl").read_text("utf-8").splitlines())
        if number % 9 != left_out
    ]
    output.mkdir(parents=True, exist_ok=True)
    table, ids = output.with_suffix(".jsonl"), output.with_suffix(".txt")
    table.write_text("".join(f"{line}\n" for _, line in rows), encoding="utf-8")
    files = (json.loads(line)["file"] for number, line in rows if number == aside)
    ids.write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
    command = ["train", "dataset", table, "--images", photos, "--validation-ids", ids]
    run(*command, "--duplicate-distance", 6, "--output", output)
    return output


def train(dataset: Path, output: Path, changed: Sequence[str], *, threads: int = 1) -> Path:
    """Train, or go on; returns the best checkpoint."""
    settings = [word for value in (*FASTER, *changed) for word in ("--set", value)]
    command = ["train", "tagger", RECIPE, "--data", dataset, "--output", output, "--no-plan"]
    return Path(run(*command, "--threads", threads, *settings).splitlines()[-1])


def draw(runs: Sequence[Path], picture: Path) -> None:
    """Draw the curves of runs."""
    print(run("train", "curves", *runs, "--output", picture))


def protocol(model: Path, photos: Path) -> dict[str, Any]:
    """Five tags for each photo that is kept aside, as papers on Corel5k measure: means over the words that occur."""
    found = read_photos(photos)
    return corel_protocol(log_odds(f"dir:{model}", found), found.truth)


def run(*words: object) -> str:
    """Run `annotary` and return what it prints; its messages are shown."""
    command = [sys.executable, "-m", "annotary", *(str(word) for word in words)]
    print(" ".join(command[2:]), flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
