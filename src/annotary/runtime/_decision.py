"""Which library runs a network, where and in what precision; decided before anything heavy is imported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from annotary.errors import UsageError
from annotary.runtime._options import Device, Library, Precision, RuntimeOptions
from annotary.runtime._processor import processor_features

TITLES: dict[Library, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "torch",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """What a library can do for a model here, on one device.

    Attributes:
        library: Which.
        device: Where.
        precisions: What it can compute this model in; the first is the best. None when it cannot run it.
        reason: Why the first is the best, or why there is none.
        is_second: Whether others that fit are taken before it, unless it is asked for.
    """

    library: Library
    device: Device
    precisions: tuple[Precision, ...]
    reason: str
    is_second: bool = False


class CannotRun(UsageError):
    """What was asked of a run cannot be had.

    Args:
        told: The message, for what the model is called.
        name: What it is called here; who knows what the user called it tells it so.
    """

    def __init__(self, told: Callable[[str], str], name: str) -> None:
        super().__init__(told(name))
        self.told = told


@dataclass(frozen=True, slots=True)
class Decision:
    """What a run uses.

    Attributes:
        library: Which.
        device: Where.
        precision: Of most of the arithmetic.
        reason: Why, in words.
    """

    library: Library
    device: Device
    precision: Precision
    reason: str


def decide(options: RuntimeOptions, offered: Iterable[Offer], *, name: str = "NAME") -> Decision:
    """What a run uses, of what there is.

    A GPU goes before the processor, and there the faster library before the slower: OpenVINO, then torch in bf16, then
    ONNX Runtime, then torch in fp32 (`python -m benchmarks.joytag`).

    Args:
        options: What was asked.
        offered: What there is.
        name: The model's, for messages.

    Raises:
        CannotRun: What was asked cannot be had; the message says what can.
    """
    every = [offer for offer in offered if options.runtime in ("auto", offer.library)]
    left = [offer for offer in every if offer.precisions]
    if options.runtime != "auto" and not left:
        title, reasons = TITLES[options.runtime], [offer.reason for offer in every]
        raise CannotRun(lambda name: _refusal(f"{name} cannot run in {title}", reasons), name)
    if options.device != "auto":
        there = [offer for offer in left if offer.device == options.device]
        if not there:
            told = _no_device(options.device, left, every)
            raise CannotRun(
                lambda name: _refusal(f"{name} cannot run on {options.device} here", told), name
            )
        left = there
    ranked = sorted(
        (_rank(offer, precision), place, offer, precision)
        for place, offer in enumerate(left)
        for precision in (
            [options.precision] if options.precision != "auto" else offer.precisions[:1]
        )
        if precision in offer.precisions
    )
    if not ranked:
        raise CannotRun(lambda name: _no_precision(options.precision, left, every, name), name)
    _, _, offer, precision = ranked[0]
    why = "as asked" if options.precision != "auto" else offer.reason
    return Decision(offer.library, offer.device, precision, why)


_ORDER = (
    ("cuda", "torch", ("fp16", "bf16", "fp32")),
    ("cuda", "onnxruntime", ("fp32", "fp16", "int8")),
    ("cpu", "openvino", ("bf16", "fp16", "fp32", "int8")),
    ("cpu", "torch", ("bf16", "fp16")),
    ("cpu", "onnxruntime", ("fp32", "fp16", "int8")),
    ("cpu", "torch", ("fp32",)),
)
"""From the fastest to the slowest."""


def _rank(offer: Offer, precision: str) -> int:
    first = next(
        place
        for place, (device, library, precisions) in enumerate(_ORDER)
        if device == offer.device and library == offer.library and precision in precisions
    )
    return first + len(_ORDER) * offer.is_second


def _refusal(what: str, reasons: Sequence[str]) -> str:
    return f"{what}: {'; '.join(dict.fromkeys(reasons))}" if reasons else what


def _no_device(device: str, left: Sequence[Offer], every: Sequence[Offer]) -> list[str]:
    """Why nothing runs on a device: what was found to be missing there, or that a library knows no such device."""
    missing = [offer.reason for offer in every if offer.device == device and not offer.precisions]
    return missing or [f"{TITLES[offer.library]} runs on {offer.device} alone" for offer in left]


def _no_precision(asked: str, left: Sequence[Offer], every: Sequence[Offer], name: str) -> str:
    """Why a precision cannot be had, and what can."""
    can = [
        f"{TITLES[offer.library]} runs it in {' or '.join(offer.precisions)} on {offer.device}"
        for offer in left
    ]
    libraries = {offer.library for offer in left}
    missing = [o.reason for o in every if not o.precisions and o.library not in libraries]
    told = [*can, *missing]
    is_integer = any("int8" in offer.precisions for offer in left)
    if asked == "int8":
        hint = "--precision int8 --calibrate PHOTOS"
        made = "makes a model that runs in int8"
        told = [*can, f"annotary export {shlex.quote(name)} {hint} {made}"]
    elif is_integer:
        hint, made = "--precision fp32", f"makes a model that runs in {asked}"
        told = [*can, f"annotary export {shlex.quote(name)} {hint} {made}"]
    elif asked in ("bf16", "fp16") and asked not in processor_features():
        told.insert(0, f"this processor has no arithmetic in {asked}")
    return _refusal(f"{name} cannot run in {asked} here", told)


def offers(
    onnx_precision: str | None,
    *,
    has_torch: bool,
    is_transformer: bool = True,
    is_elsewhere: bool = False,
    is_convertible: bool = False,
) -> list[Offer]:
    """What the libraries that are installed can do for a model.

    Args:
        onnx_precision: What its ONNX file computes in, `fp32`, `fp16` or `int8`; None when it has no such file.
        has_torch: Whether it has weights for torch.
        is_transformer: Whether the file's network has attention or the norms of transformers.
        is_elsewhere: Whether the file has weights in other files, and they are links.
        is_convertible: Whether OpenVINO can take the network from torch, where there is no ONNX file.
    """
    if onnx_precision is None and has_torch and is_convertible:
        openvino = _openvino_from_torch()
    else:
        openvino = _openvino(
            onnx_precision, is_transformer=is_transformer, is_elsewhere=is_elsewhere
        )
    return [
        *_onnx_runtime(onnx_precision),
        openvino,
        *_torch(has_torch),
    ]


def installed(distribution: str) -> str | None:
    """The version of a package that is installed and can be imported."""
    try:
        return version(distribution) if find_spec(distribution) else None
    except (PackageNotFoundError, ValueError):
        return None


def _own(onnx_precision: str) -> Precision:
    if onnx_precision == "int8":
        return "int8"
    return "fp16" if onnx_precision == "fp16" else "fp32"


def _onnx_runtime(onnx_precision: str | None) -> list[Offer]:
    if onnx_precision is None:
        return [Offer("onnxruntime", "cpu", (), "there is no ONNX file of it")]
    from annotary.runtime.onnx_runtime import offers_cuda

    precision = _own(onnx_precision)
    why = "what the file computes in"
    on_gpu, about_gpu = offers_cuda()
    return [
        Offer("onnxruntime", "cuda", (precision,) if on_gpu else (), why if on_gpu else about_gpu),
        Offer("onnxruntime", "cpu", (precision,), why),
    ]


def _openvino(onnx_precision: str | None, *, is_transformer: bool, is_elsewhere: bool) -> Offer:
    if onnx_precision is None:
        return Offer("openvino", "cpu", (), "there is no ONNX file of it")
    if installed("openvino") is None:
        why = "OpenVINO is not installed: pip install 'annotary[openvino]'"
        return Offer("openvino", "cpu", (), why)
    if is_elsewhere:
        why = "OpenVINO follows no links to weights beside the network, such as the hub's cache has"
        return Offer("openvino", "cpu", (), why)
    if onnx_precision == "int8":
        # Convolutions in integers are as fast in ONNX Runtime, which starts half a second earlier.
        return Offer("openvino", "cpu", ("int8",), "what the file computes in", not is_transformer)
    return _openvino_in_floats()


def _openvino_from_torch() -> Offer:
    for library, extra in (("torch", "torch"), ("openvino", "openvino")):
        if installed(library) is None:
            title = {"torch": "torch", "openvino": "OpenVINO"}[library]
            why = f"{title} is not installed: pip install 'annotary[{extra}]'"
            return Offer("openvino", "cpu", (), why)
    return _openvino_in_floats()


def _openvino_in_floats() -> Offer:
    halves: list[Precision] = [p for p in ("bf16", "fp16") if p in processor_features()]
    if "bf16" in halves:
        return Offer("openvino", "cpu", (*halves, "fp32"), "this processor computes in bf16")
    return Offer("openvino", "cpu", ("fp32", *halves), "this processor has no bf16")


def _torch(has_weights: bool) -> list[Offer]:
    found = installed("torch")
    if not has_weights or found is None:
        why = "there are no weights of it for torch"
        if has_weights:
            why = "torch is not installed: pip install 'annotary[torch]'"
        return [Offer("torch", "cpu", (), why)]
    if "bf16" in processor_features():
        cpu = Offer("torch", "cpu", ("bf16", "fp32"), "this processor computes in bf16")
    else:
        cpu = Offer("torch", "cpu", ("fp32",), "this processor has no bf16")
    if not _torch_has_cuda(found):
        return [Offer("torch", "cuda", (), f"torch {found} finds no CUDA"), cpu]
    return [Offer("torch", "cuda", ("fp16", "bf16", "fp32"), "torch finds a GPU"), cpu]


def _torch_has_cuda(found: str) -> bool:
    """Whether torch can use a GPU. It is imported only where its version or the system does not tell already."""
    if "+cpu" in found or sys.platform == "darwin":
        return False
    import torch

    return bool(torch.cuda.is_available())
