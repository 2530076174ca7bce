"""`annotary models`: the models that are known by name, and `annotary models add` for those of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from annotary.cards import ChannelOrder, Fit, Layout, Resample
from annotary.errors import UsageError

if TYPE_CHECKING:
    from annotary.cards import PreprocessSpec, Vocabulary
    from annotary.models._adding import Network


@click.group("models", invoke_without_command=True, short_help="List the models, or add one.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the models that are known by name: licence, size, what they are, and which are on this machine."""
    if context.invoked_subcommand is not None:
        return
    from annotary import weights

    rows = [_row(name) for name in weights.known()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(_told(row))


def _row(name: str) -> dict[str, Any]:
    from annotary import weights
    from annotary.models import describe_known

    card, folder = describe_known(name)
    if folder is not None:
        files = card.files or [path.name for path in folder.iterdir()]
        size: int | None = sum((folder / file).stat().st_size for file in files)
    else:
        size = sum(card.sizes.values()) or None
    return {
        "name": name,
        "version": card.version,
        "licence": card.licence,
        "bytes": size,
        "description": card.description,
        "family": card.family,
        "source": card.source,
        "is_here": folder is not None,
        "is_shipped": name in weights.shipped(),
    }


def _told(row: dict[str, Any]) -> str:
    from annotary.models import told_size

    size = told_size(row["bytes"]) + ", " if row["bytes"] else ""
    if row["is_shipped"]:
        where = "in the package"
    elif row["is_here"]:
        where = "on this machine"
    else:
        where = f"not here: annotary pull {row['name']}"
    version = f" {row['version']}" if row["is_here"] else ""
    return (
        f"{row['name']}{version}  {row['licence']}  {size}{where}\n  {row['description']}\n"
        f"  family {row['family']}, from {row['source']}"
    )


def _numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    """Three numbers with commas between them."""
    if value is None:
        return None
    try:
        first, second, third = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"three numbers are needed, such as 0.5,0.5,0.5: {value!r}"
        ) from None
    return first, second, third


def _colour(_context: click.Context, _option: click.Parameter, value: str) -> Any:
    """Three whole numbers with commas between them."""
    try:
        red, green, blue = (int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"three whole numbers are needed, such as 255,255,255: {value!r}"
        ) from None
    return red, green, blue


def _size(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    """Height and width, or one number for both."""
    if value is None:
        return None
    try:
        sides = [int(part) for part in value.lower().split("x")]
        (height, width) = sides * 2 if len(sides) == 1 else sides
    except ValueError:
        raise click.BadParameter(f"448, or 384x512 for height and width: {value!r}") from None
    return height, width


@command.command("add", short_help="Make a model of a folder with a tagger in ONNX.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--network", help="The ONNX file, where the folder has several.")
@click.option(
    "--tags",
    type=click.Path(path_type=Path),
    help="The tags, in the order of the network's outputs: a CSV with columns name and category, JSON, or a text with"
    " one on each line. Without it, the folder's tags.csv.",
)
@click.option("--name", help="What the model is called; the folder's name when nothing is said.")
@click.option(
    "--licence", help="Of the weights, an SPDX identifier such as Apache-2.0, or unknown."
)
@click.option("--description", default="", help="One sentence.")
@click.option("--source", default="", help="Where the weights come from.")
@click.option("--revision", default="", help="Commit or version of the source.")
@click.option("--paper", default="", help="Title or address of the paper.")
@click.option("--version", default="1.0", show_default=True, help="Of the weights.")
@click.option("--size", callback=_size, help="Side of the input in pixels, or HEIGHTxWIDTH.")
@click.option("--layout", type=click.Choice(get_args(Layout)), help="Order of the input's axes.")
@click.option("--channel-order", type=click.Choice(get_args(ChannelOrder)), help="Of the colours.")
@click.option(
    "--fit", type=click.Choice(get_args(Fit)), help="What happens to images of another shape."
)
@click.option(
    "--resample",
    type=click.Choice(get_args(Resample)),
    default="bicubic",
    show_default=True,
    help="How images are made smaller or larger.",
)
@click.option(
    "--pad-colour",
    callback=_colour,
    default="255,255,255",
    show_default=True,
    help="RGB 0..255 of what --fit pad fills.",
)
@click.option(
    "--crop-share",
    type=float,
    default=1.0,
    show_default=True,
    help="For --fit crop: the share of the shorter side that is taken, 0..1.",
)
@click.option(
    "--scale",
    type=float,
    default=255.0,
    show_default=True,
    help="Pixel values 0..255 are divided by this first; 1 leaves them.",
)
@click.option(
    "--mean", callback=_numbers, help="Then subtracted, one number a channel: 0.485,0.456,0.406"
)
@click.option("--std", callback=_numbers, help="Then divided by, one number a channel.")
@click.option(
    "--activation",
    type=click.Choice(("none", "sigmoid")),
    help="What makes probabilities of the outputs; none where the network does it.",
)
@click.option("--threshold", type=float, help="Keep tags from this probability on, 0..1.")
@click.option("--overwrite", is_flag=True, help="Replace the card and the tags that are there.")
def add(directory: Path, **values: Any) -> None:
    """Write the card of a tagger in ONNX, so that --model dir:DIRECTORY runs it.

    What the file does not tell is asked for on a terminal, unless it is given. The network is run once on a grey image;
    if it does not give one probability a tag, nothing is written.
    """
    from annotary.cli._output import one_line
    from annotary.models import _adding

    network = _adding.network_of(directory, values["network"])
    vocabulary = _vocabulary(directory, values["tags"])
    _complete(network, values)
    added = _adding.add(
        directory,
        network,
        vocabulary,
        _preprocess(network, values),
        name=values["name"] or directory.resolve().name,
        licence=values["licence"],
        activation=values["activation"],
        about={k: values[k] for k in ("version", "description", "source", "revision", "paper")},
        threshold=values["threshold"],
        can_overwrite=values["overwrite"],
    )
    click.echo(
        one_line(
            f"{added.card.id}: {added.tags:,} tags; a grey image scores {added.lowest:.3f} to"
            f" {added.highest:.3f}; use it with --model dir:{directory}"
        )
    )


def _vocabulary(directory: Path, tags: Path | None) -> Vocabulary:
    from annotary.cards import TAGS_FILE
    from annotary.models._adding import read_tags

    if tags is None and not (directory / TAGS_FILE).is_file():
        raise UsageError(f"{directory} has no {TAGS_FILE}; --tags names the file with the tags")
    return read_tags(tags or directory / TAGS_FILE)


_QUESTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "size": ("Side of the input in pixels, or HEIGHTxWIDTH", ()),
    "layout": ("Order of the input's axes", get_args(Layout)),
    "channel_order": ("Order of the colours", get_args(ChannelOrder)),
    "fit": ("What happens to images of another shape", get_args(Fit)),
    "mean": ("Mean of the channels, three numbers, after the division by --scale", ()),
    "std": ("Deviation of the channels, on the same scale", ()),
    "activation": (
        "What makes probabilities of the outputs (none: the network)",
        ("none", "sigmoid"),
    ),
    "licence": ("Licence of the weights (an SPDX identifier, or unknown)", ()),
}
"""What nobody but a person can know, where the file does not tell."""

_PARSERS = {"size": _size, "mean": _numbers, "std": _numbers}


def _complete(network: Network, values: dict[str, Any]) -> None:
    """Fill in what was not given: from the file, or by asking.

    Raises:
        UsageError: What was given is not what the file says; or something is missing and nobody can be asked.
    """
    for what, says in (("layout", network.layout), ("size", network.size)):
        if says is not None and values[what] not in (None, says):
            given, found = (_shown(value) for value in (values[what], says))
            raise UsageError(f"--{what} {given}, but {network.path} takes {found}")
        values[what] = says or values[what]
    if network.dtype == "uint8":  # such a network normalises by itself
        values |= {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}
    missing = [what for what in _QUESTIONS if values[what] is None]
    if missing and not sys.stdin.isatty():
        needed = ", ".join("--" + what.replace("_", "-") for what in missing)
        raise UsageError(
            f"{network.path} does not tell everything; these are needed, too: {needed}"
        )
    for what in missing:
        question, choices = _QUESTIONS[what]
        kind = click.Choice(choices) if choices else str
        values[what] = click.prompt(question, type=kind, err=True, value_proc=_parser(what))


def _parser(what: str) -> Callable[[str], Any] | None:
    """What makes a value of an answer; an answer that makes no sense is asked for again."""
    if what not in _PARSERS:
        return None
    option = click.Option([f"--{what}"])
    return lambda answer: _PARSERS[what](click.get_current_context(), option, answer)


def _preprocess(network: Network, values: dict[str, Any]) -> PreprocessSpec:
    from annotary.cards import PreprocessSpec

    names = (
        "size",
        "fit",
        "resample",
        "pad_colour",
        "crop_share",
        "channel_order",
        "layout",
        "scale",
        "mean",
        "std",
    )
    try:
        return PreprocessSpec(
            dtype=network.dtype,
            **{name: values[name] for name in names},
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _shown(value: str | tuple[int, int]) -> str:
    return value if isinstance(value, str) else f"{value[0]}x{value[1]}"
