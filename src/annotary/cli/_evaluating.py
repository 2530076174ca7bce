"""What the commands of `annotary evaluate` share: where reports go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from annotary.cli._measuring import print_report, write_report
from annotary.cli._output_places import Outputs

if TYPE_CHECKING:
    from annotary.records import Failure

FILE = click.Path(path_type=Path)
"""A path on the command line."""

output_option = click.option(
    "--output", type=FILE, metavar="FILE", help="Write the report there, as JSON."
)
image_column_option = click.option(
    "--image-column", metavar="NAME", help="Column of a table that holds the images."
)


def give(report: Mapping[str, Any], values: Mapping[str, Any], show: Callable[[], None]) -> None:
    """Write the report where it was asked for, and print it.

    Args:
        report: The report.
        values: The values of the options.
        show: Prints it for people.

    Raises:
        OutputError: It cannot be written; it is printed all the same.
    """
    outputs = Outputs()
    if values["output"] is not None:
        with outputs.one():
            write_report(values["output"], report)
    if values["as_json"]:
        print_report(report)
    else:
        show()
    outputs.finish()


def first_failure(failures: Sequence[Failure]) -> str:
    """The first of some failures, to end a message with; nothing when there are none."""
    return f"; {failures[0].image}: {failures[0].message}" if failures else ""


def integers(values: Sequence[int]) -> npt.NDArray[np.int64]:
    """Whole numbers as an array."""
    return np.array(values, dtype=np.int64)
