"""JoyTag's architecture at 448 pixels, end to end from files: annotary in every precision against two plain loops.

python -m benchmarks.joytag --photos ../shared/data/coco/images --work build/benchmarks

The weights are random (seeded), of the official configuration with 5,813 tags: time does not depend on them. Every
contender is a process of its own, which loads the model, tags two photos to warm up, and then is timed over all photos;
they take turns. A GPU, where there is one, is measured against its own rate for dense products in fp16.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CONFIG = {
    "class": "ViT",
    "num_blocks": 12,
    "patch_size": 16,
    "d_model": 768,
    "mlp_dim": 3072,
    "num_heads": 12,
    "stochdepth_rate": 0.05,
    "use_sine": True,
    "cnn_stem": "conv:c=64;ln;relu;conv:c=128;ln;relu;conv:c=256;ln;relu;conv:c=512;ln;relu;conv:c=768,s=1,k=1,p=0",
    "image_size": 448,
    "n_tags": 5813,
    "loss_type": "focal2",
}
"""The config.json of fancyfeast/joytag."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

OPERATIONS = 162e9
"""Floating-point operations of one image: counted by torch, and attention, which it does not count."""

WARM_UP = 2
CALIBRATED_ON = 16

LOOP = "reference's loop: torch fp32, one image at a time"
PLAIN = "ONNX Runtime fp32, one image at a time"
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "annotary fp32, ONNX Runtime": ("fp32", {"runtime": "onnxruntime"}),
    "annotary fp32, OpenVINO": ("fp32", {"runtime": "openvino", "precision": "fp32"}),
    "annotary bf16, torch": ("torch", {"runtime": "torch", "precision": "bf16"}),
    "annotary bf16, OpenVINO": ("fp32", {"runtime": "openvino", "precision": "bf16"}),
    "annotary int8, ONNX Runtime": ("int8", {"runtime": "onnxruntime"}),
    "annotary int8, OpenVINO": ("int8", {"runtime": "openvino"}),
}
"""Contender to the form of the model and how it runs."""

ON_GPU: dict[str, tuple[str, dict[str, Any]]] = {
    "annotary fp16, torch, GPU": ("torch", {"runtime": "torch", "device": "cuda"})
}


def make_models(work: Path, photos: Path, forms: Sequence[str]) -> None:
    """Make the model directories that are not there yet."""
    import torch
    from safetensors.torch import save_file

    from annotary.export import ExportOptions, export_model
    from annotary.models._joytag_vit import JoyTagConfig, JoyTagViT

    folder = work / "joytag-torch"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = JoyTagViT(JoyTagConfig.from_json(CONFIG))
        # As with trained weights, few tags reach the threshold.
        torch.nn.init.constant_(network.head.bias, -3.0)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        names = (f"tag_{number}" for number in range(network.config.n_tags))
        (folder / "top_tags.txt").write_text("\n".join(names))
        save_file(dict(network.state_dict()), folder / "model.safetensors")
    if "fp32" in forms and not (work / "joytag-fp32").exists():
        export_model(f"dir:{folder}", ExportOptions("fp32"), work / "joytag-fp32")
    if "int8" in forms and not (work / "joytag-int8").exists():
        options = ExportOptions("int8", (str(photos),), samples=CALIBRATED_ON)
        export_model(f"dir:{folder}", options, work / "joytag-int8")


def prepared(path: Path) -> npt.NDArray[np.float32]:
    """An image as the reference's README prepares it: [3, 448, 448]."""
    image = Image.open(path)
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    if side != CONFIG["image_size"]:
        canvas = canvas.resize((448, 448), Image.Resampling.BICUBIC)
    pixels = np.asarray(canvas, np.float32) / 255
    normal = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def reference_loop(work: Path) -> Callable[[Iterable[Path]], Iterator[Any]]:
    """The loop of the reference's README, on a processor, with the norms of its stem computed as it does.

    It swaps the channels with the columns and back again, after which the next convolution copies the image. annotary's
    network leaves the order in memory that convolutions like best, and is a tenth faster by that alone.
    """
    import torch
    from torch import Tensor, nn

    from annotary.models._joytag_vit import ChannelNorm, load_network

    class Swapping(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, image: Tensor) -> Tensor:
            normal: Tensor = self.norm(image.transpose(1, 3))
            return normal.transpose(1, 3)

    network = load_network(work / "joytag-torch")
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ChannelNorm):
                setattr(parent, name, Swapping(child.norm))
    names = (work / "joytag-torch" / "top_tags.txt").read_text().split("\n")

    def tag(photos: Iterable[Path]) -> Iterator[Any]:
        for path in photos:
            with torch.no_grad():
                logits, _ = network(torch.from_numpy(prepared(path))[None])
                scores = logits.sigmoid()[0].tolist()
            yield [name for name, score in zip(names, scores, strict=True) if score > 0.4]

    return tag


def plain_loop(work: Path) -> Callable[[Iterable[Path]], Iterator[Any]]:
    """ONNX Runtime with its default settings."""
    import onnxruntime

    path = work / "joytag-fp32" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = (work / "joytag-torch" / "top_tags.txt").read_text().split("\n")

    def tag(photos: Iterable[Path]) -> Iterator[Any]:
        for path in photos:
            logits = session.run(["scores"], {"image": prepared(path)[None]})[0][0]
            scores = 1 / (1 + np.exp(-logits))
            yield [name for name, score in zip(names, scores.tolist(), strict=True) if score > 0.4]

    return tag


def annotator(
    work: Path, form: str, options: dict[str, Any]
) -> Callable[[Iterable[Path]], Iterator[Any]]:
    """annotary, from Python."""
    import annotary

    model = annotary.load(f"dir:{work / f'joytag-{form}'}", **options)
    print(model.choice, file=sys.stderr)

    def tag(photos: Iterable[Path]) -> Iterator[Any]:
        for record in model.tag(list(photos), threshold=0.4):
            if not isinstance(record, annotary.Annotation):
                raise SystemExit(f"{record.image}: {record.message}")
            yield record

    return tag


def run_one(name: str, work: Path, photos: Sequence[Path]) -> None:
    """Time one contender in this process, and print what was found as JSON."""
    if name == LOOP:
        tag = reference_loop(work)
    elif name == PLAIN:
        tag = plain_loop(work)
    else:
        tag = annotator(work, *(OURS | ON_GPU)[name])
    for _ in tag(photos[:WARM_UP]):
        pass
    halfway = 0
    started, busy = time.perf_counter(), time.process_time()
    for number, _ in enumerate(tag(photos), 1):
        if number == len(photos) // 2:
            halfway = _memory()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    found = {"rate": len(photos) / seconds, "busy": busy / len(photos)}
    print(json.dumps({**found, "half": halfway, "peak": _memory()}))


def _memory() -> int:
    """Most resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000


def dense_rate() -> float:
    """Operations a second of this GPU in a large dense fp16 product, measured."""
    import torch

    side, rounds = 8192, 50
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    for _ in range(10):
        left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        left @ right
    torch.cuda.synchronize()
    return 2 * side**3 * rounds / (time.perf_counter() - started)


def network_rate(work: Path, batch: int) -> float:
    """Images a second of the network alone on the GPU, in fp16, as `TorchSession` runs it."""
    import torch

    from annotary.models._joytag_vit import load_network
    from annotary.runtime import RuntimeOptions
    from annotary.runtime.torch_runtime import TorchSession

    options = RuntimeOptions(device="cuda", precision="fp16")
    session = TorchSession(
        load_network(work / "joytag-torch"), ("scores", "features"), options, (3, 448, 448)
    )
    images = torch.randn(batch, 3, 448, 448, device="cuda", dtype=torch.float16)
    rounds = max(10, 2000 // batch)
    for _ in range(5):
        session.compute(images)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        session.compute(images)
    torch.cuda.synchronize()
    return batch * rounds / (time.perf_counter() - started)


def tell_gpu(work: Path) -> None:
    """Print how much of the GPU's measured rate the network reaches."""
    import torch

    peak = dense_rate()
    print(f"\n{torch.cuda.get_device_name()}: dense fp16 {peak / 1e12:.0f} TFLOP/s, measured\n")
    print("| network alone, fp16, images a batch | images/s | of the dense rate |\n|---|---|---|")
    for batch in (32, 64, 128):
        rate = network_rate(work, batch)
        print(f"| {batch} | {rate:.0f} | {rate * OPERATIONS / peak:.0%} |", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of real photos")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the models")
    parser.add_argument("--count", type=int, default=64, help="photos a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="words of the contenders to measure")
    parser.add_argument("--gpu-alone", action="store_true", help="measure nothing but the GPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = sorted(options.photos.glob("*.jpg"))
    files = [files[i % len(files)] for i in range(options.count)]
    if options.one:
        run_one(options.one, options.work, files)
        return
    import torch

    has_gpu = torch.cuda.is_available()
    if options.gpu_alone:
        names = [LOOP, *ON_GPU]
    else:
        names = [LOOP, PLAIN, *OURS, *(ON_GPU if has_gpu else ())]
    if options.only:
        names = [name for name in names if any(word in name for word in [LOOP, *options.only])]
    forms = {"fp32"} if PLAIN in names else set()
    forms |= {OURS[name][0] for name in names if name in OURS}
    make_models(options.work, options.photos, sorted(forms))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            command = [sys.executable, "-m", "benchmarks.joytag", *sys.argv[1:], "--one", name]
            result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[name].append(json.loads(result.stdout))
            print(f"round {number + 1}: {name}: {result.stdout.strip()}", file=sys.stderr)
    _tell(found)
    if has_gpu:
        tell_gpu(options.work)


def _tell(found: dict[str, list[dict[str, float]]]) -> None:
    """Print medians. The seconds that the cores were busy are told, too: they hardly depend on what else runs."""
    print(
        "| | images/s | of the reference's loop | core seconds an image | by these | peak MB half-way | peak MB |\n"
        "|---|---|---|---|---|---|---|"
    )

    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in found[name])

    for name, rounds in found.items():
        ratios = [one["rate"] / loop["rate"] for one, loop in zip(rounds, found[LOOP], strict=True)]
        busy = median(name, "busy")
        half, peak = (max(one[key] for one in rounds) for key in ("half", "peak"))
        print(
            f"| {name} | {median(name, 'rate'):.2f} | {statistics.median(ratios):.2f}× | {busy:.2f}"
            f" | {median(LOOP, 'busy') / busy:.2f}× | {half:.0f} | {peak:.0f} |"
        )


if __name__ == "__main__":
    main()
