"""What decoding JPEGs at reduced scale saves, and what it changes in the network's input and in the starter's tags.

python -m benchmarks.reduced_decode --photos ../shared/data/coco/images --work build/benchmarks
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary import images, preprocess
from annotary.images import DecodeOptions
from annotary.models import load_model
from annotary.tasks.tagging import tagger
from benchmarks.photos import large_jpegs

GAPS = (None, 4.0, 2.0, 1.4, 1.0)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of real photos")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the large files")
    parser.add_argument("--count", type=int, default=60)
    options = parser.parse_args()
    paths = large_jpegs(options.photos, options.work / "large-500", options.count)
    model = tagger(load_model("starter"))
    spec = model.card.preprocess
    thresholds = np.array(model.vocabulary.thresholds["balanced"], dtype=np.float32)
    inputs: dict[float | None, npt.NDArray[np.uint8]] = {}
    milliseconds = {}
    for gap in GAPS:
        images.REDUCING_GAP = gap or 1.0
        decode_options = DecodeOptions(reduce=gap is not None)
        fitted = []
        started = time.process_time()
        for path in paths:
            found = images.decode(
                path.read_bytes(), at_least=preprocess.needed_by_all(spec), options=decode_options
            )
            fitted.append(preprocess.fit(found.pixels, spec, (found.width, found.height)))
        milliseconds[gap] = (time.process_time() - started) / len(paths) * 1e3
        inputs[gap] = np.stack(fitted)
    scores = {
        gap: np.concatenate([model.tag_scores(batch[i : i + 1]) for i in range(len(paths))])
        for gap, batch in inputs.items()
    }
    chosen = scores[None] >= thresholds
    print(
        f"{len(paths)} JPEGs of 12 megapixels, {int(chosen.sum())} tags at the balanced preset.\n"
    )
    print(
        "| gap | ms an image, decode and resize | mean difference of the input, of 255 | largest |"
        " mean difference of chosen tags' scores | tags that cross their threshold |"
    )
    print("|---|---|---|---|---|---|")
    for gap in GAPS:
        difference = np.abs(inputs[gap].astype(np.int16) - inputs[None])
        moved = np.abs(scores[gap] - scores[None])[chosen].mean()
        crossed = int(((scores[gap] >= thresholds) != chosen).sum())
        cells = (
            f"{milliseconds[gap]:.0f}",
            f"{difference.mean():.2f}",
            f"{difference.max()}",
            f"{moved:.4f}",
        )
        print(f"| {gap or 'full decode'} | {' | '.join(cells)} | {crossed} |")


if __name__ == "__main__":
    main()
