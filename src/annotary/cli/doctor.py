"""`annotary doctor`: what a run would use here, and whether all is well."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from annotary import __version__

PARTS = (
    ("onnxruntime", None),
    ("pillow", None),
    ("numpy", None),
    ("torch", "torch"),
    ("transformers", "torch"),
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
    from annotary.runtime import RuntimeOptions
    from annotary.runtime.onnx_runtime import choose

    python = platform.python_version()
    click.echo(f"annotary {__version__}, Python {python}, {platform.system()} {platform.machine()}")
    for name, extra in PARTS:
        click.echo(f"  {name}: {_installed(name, extra)}")
    choice = choose(RuntimeOptions())
    click.echo(
        f"networks run on {choice.library}, {choice.device}, {choice.precision}: {choice.reason}"
    )
    for name, folder in weights.shipped().items():
        check_files(read_card(folder), folder)
        click.echo(f"model {name}: files as on its card")
    sys.stdout.flush()


def _installed(name: str, extra: str | None) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"not here; pip install 'annotary[{extra}]'" if extra else "missing"
