"""`annotary doctor`: what a run would use here, and whether all is well."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import click

from annotary import __version__

if TYPE_CHECKING:
    from annotary.runtime import Offer

PARTS = (
    ("onnxruntime", None),
    ("pillow", None),
    ("numpy", None),
    ("openvino", "openvino"),
    ("torch", "torch"),
    ("transformers", "torch"),
    ("safetensors", "torch"),
    ("nncf", "export"),
    ("pillow-heif", "formats"),
    ("pillow-jxl-plugin", "formats"),
)
"""Distributions that matter, and the extra that brings each; None for those that are always there."""


@click.command("doctor", short_help="Say what a run would use here, and why.")
def command() -> None:
    """Say which libraries are here, what a run would use and why, and check the models that ship with the package.

    Exits with 2 when a shipped model is damaged.
    """
    from annotary import weights
    from annotary.cards import check_files, read_card

    python = platform.python_version()
    click.echo(f"annotary {__version__}, Python {python}, {platform.system()} {platform.machine()}")
    for name, extra in PARTS:
        click.echo(f"  {name}: {_installed(name, extra)}")
    _tell_runtime()
    for name, folder in weights.shipped().items():
        check_files(read_card(folder), folder)
        click.echo(f"model {name}: files as on its card")
    sys.stdout.flush()


def _tell_runtime() -> None:
    """What networks of each kind run on here, and what else could run them."""
    from annotary.runtime import (
        RuntimeOptions,
        available_cores,
        decide,
        offers,
        processor_features,
    )

    features = ", ".join(sorted(processor_features())) or "neither bf16 nor vnni is known of it"
    cores = available_cores()
    click.echo(
        f"processor: {cores} {'core' if cores == 1 else 'cores'} for this process; {features}"
    )
    kinds = {
        "networks in ONNX, int8 (starter)": offers("int8", has_torch=False, is_transformer=False),
        "transformers in ONNX, int8": offers("int8", has_torch=False),
        "networks in ONNX, fp32": offers("fp32", has_torch=False),
        "networks in torch": offers(None, has_torch=True),
        "image-text checkpoints": offers(None, has_torch=True, is_convertible=True),
    }
    for kind, found in kinds.items():
        able = [offer for offer in found if offer.precisions]
        if not able:
            reasons = [offer.reason for offer in found if offer.library == "torch"]
            click.echo(f"{kind} cannot run: {reasons[0]}")
            continue
        chosen = decide(RuntimeOptions(), found)
        click.echo(
            f"{kind} run on {chosen.library}, {chosen.device}, {chosen.precision}: {chosen.reason}"
        )
        for offer in able:
            if (offer.library, offer.device) != (chosen.library, chosen.device):
                click.echo(f"  or {_told(offer)}")


def _told(offer: Offer) -> str:
    asked = f"--runtime {offer.library}"
    return f"{offer.library}, {offer.device}, {' or '.join(offer.precisions)}: {asked}"


def _installed(name: str, extra: str | None) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"not here; pip install 'annotary[{extra}]'" if extra else "missing"
