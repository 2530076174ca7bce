"""Starter tagging end to end on large JPEGs, against the plain loop, and against what the machine could do at best.

    python -m benchmarks.large_photos --photos ../shared/data/coco/images --work build/benchmarks

Every round runs these one after the other, so that a machine that grows slower does so for all; medians of the rounds'
ratios are printed as a table. `loop`, `annotary` and `decode` see the same files.

    loop      what a user would write: Pillow opens, converts and resizes, ONNX Runtime runs one image at a time
    annotary  `annotary tag FOLDER --output FILE`, the whole process
    decode    reading, decoding and resizing as annotary does, on all cores, and nothing else
    network   the network on prepared images, on all cores, and nothing else
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from annotary import images, preprocess, weights
from annotary.cards import read_card, read_vocabulary
from annotary.models import load_model
from annotary.runtime import available_cores
from annotary.tasks.tagging import tagger
from benchmarks.photos import large_jpegs

STARTER = weights.shipped()["starter"]


def plain_loop(folder: Path) -> None:
    """The loop that a user would write with the same network."""
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(STARTER / "model.onnx")
    vocabulary = read_vocabulary(STARTER)
    thresholds = np.array(vocabulary.thresholds["balanced"], dtype=np.float32)
    size = read_card(STARTER).preprocess.size
    lines = []
    for path in sorted(folder.glob("*.jpg")):
        image = Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
        scores = session.run(["scores"], {"image": np.asarray(image)[None]})[0][0]
        tags = [
            (vocabulary.names[i], float(scores[i])) for i in np.flatnonzero(scores >= thresholds)
        ]
        lines.append(json.dumps({"image": str(path), "tags": tags}))
    (folder.parent / "loop.jsonl").write_text("\n".join(lines))


def decode_alone(paths: list[Path]) -> None:
    """Reading, decoding and resizing, on all cores."""
    spec = read_card(STARTER).preprocess
    needed = preprocess.needed_by_all(spec)

    def one(path: Path) -> None:
        preprocess.fit(images.decode(path.read_bytes(), at_least=needed).pixels, spec)

    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(one, paths))


def network_alone(count: int) -> None:
    """The network on prepared images, on all cores."""
    model = tagger(load_model("starter"))
    height, width = model.card.preprocess.size
    size = model.batch_size
    batch = np.random.default_rng(0).integers(0, 256, (size, height, width, 3), np.uint8)
    with ThreadPoolExecutor(model.streams) as pool:
        list(pool.map(lambda _: model.tag_scores(batch), range(count // size)))


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of real photos")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the large files")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-loop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.work / f"large-{options.count}"
    if options.only_loop:
        plain_loop(folder)
        return
    paths = large_jpegs(options.photos, folder, options.count)
    output = options.work / "large.jsonl"
    again = [sys.executable, "-m", "benchmarks.large_photos", "--only-loop", *sys.argv[1:]]
    ours = [sys.executable, "-m", "annotary", "tag", str(folder), "--output", str(output)]
    ours += ["--on-existing", "overwrite", "--quiet"]
    rounds = []
    for number in range(options.rounds):
        rounds.append(
            {
                "loop": seconds(lambda: subprocess.run(again, check=True)),
                "annotary": seconds(lambda: subprocess.run(ours, check=True)),
                "decode": seconds(lambda: decode_alone(paths)),
                "network": seconds(lambda: network_alone(options.count)),
            }
        )
        print(number + 1, rounds[-1], file=sys.stderr, flush=True)
    report(rounds, options.count, sum(path.stat().st_size for path in paths) / len(paths))
    shutil.copy(output, options.work / "large-last.jsonl")


def report(rounds: list[dict[str, float]], count: int, mean_bytes: float) -> None:
    """Print medians as a Markdown table."""

    def median(of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(of(one) for one in rounds)

    cores = available_cores()
    print(f"{count} JPEGs of 12 megapixels, {mean_bytes / 1e6:.1f} MB on average; {cores} cores,")
    print(
        f"{platform.machine()}, Python {platform.python_version()}; medians of {len(rounds)} rounds.\n"
    )
    print("| | images/s | |\n|---|---|---|")
    ratio = median(lambda r: r["loop"] / r["annotary"])
    slower = median(lambda r: max(r["decode"], r["network"]) / r["annotary"])
    both = median(lambda r: (r["decode"] + r["network"]) / r["annotary"])
    print(f"| plain loop | {count / median(lambda r: r['loop']):.1f} | |")
    print(
        f"| annotary | {count / median(lambda r: r['annotary']):.1f} | **{ratio:.2f}×** the loop |"
    )
    share = f"annotary reaches {slower:.0%} of the slower limit"
    print(f"| decode alone, all cores | {count / median(lambda r: r['decode']):.1f} | {share} |")
    shared = f"decode and network sharing the cores: {both:.0%} of that limit"
    print(f"| network alone, all cores | {count / median(lambda r: r['network']):.1f} | {shared} |")


if __name__ == "__main__":
    main()
