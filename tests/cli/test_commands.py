"""The other commands, help, and options made from dataclasses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from annotary import __version__, registry
from annotary.cli import annotary
from annotary.cli._options import help_texts, made, options_of
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sinks import SinkOptions
from annotary.sources import SourceOptions
from annotary.tasks.tagging import TaggingOptions
from tests.conftest import child_environment


def test_help_imports_no_command():
    """All of them would take a second; what each does stands in its file."""
    code = (
        "import sys\nfrom annotary.cli import annotary\n"
        "annotary.main(['--help'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('annotary.cli.')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "['annotary.cli._groups']"
    context = click.Context(annotary)
    for name in annotary.list_commands(context):
        command = annotary.get_command(context, name)
        assert f"  {name.ljust(10)}  {command.short_help}\n" in result.stdout


def test_help_names_every_command():
    shown = CliRunner().invoke(annotary, ["--help"]).output
    assert set(registry.names("cli")) >= {"doctor", "models", "tag"}
    for name in registry.names("cli"):
        assert f"\n  {name} " in shown
        assert CliRunner().invoke(annotary, [name, "--help"]).exit_code == 0


def test_version():
    assert CliRunner().invoke(annotary, ["--version"]).output == f"annotary {__version__}\n"


def test_no_command_and_a_wrong_one():
    def call(*arguments):
        command = [sys.executable, "-m", "annotary", *arguments]
        return subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, check=False
        )

    assert call().returncode == 2
    assert "Usage: annotary" in call().stdout
    wrong = call("tga")
    assert wrong.returncode == 2
    known = ", ".join(registry.names("cli"))
    assert wrong.stderr == f"annotary: unknown command 'tga'; known: {known}\n"
    assert wrong.stderr.count("\n") == 1


def test_models_lists_the_shipped():
    rows = json.loads(CliRunner().invoke(annotary, ["models", "--json"]).output)
    (starter,) = (row for row in rows if row["name"] == "starter")
    assert starter["licence"]
    assert 30e6 < starter["bytes"] < 40e6
    assert "starter" in CliRunner().invoke(annotary, ["models"]).output


RECORDS = (
    *(DecodeOptions, PipelineOptions, RuntimeOptions, SinkOptions, SourceOptions, TaggingOptions),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_options_has_a_help_text(record):
    assert set(help_texts(record)) == {entry.name for entry in fields(record)}


@dataclass(frozen=True)
class Sample:
    """Options of every kind."""

    number: float = 0.5
    """A number."""

    maybe: int | None = None
    """Perhaps a number."""

    several: tuple[str, ...] = ()
    """Any number of words."""

    choice: Literal["a", "b"] = "a"
    """One of two."""

    on: bool = True
    """On, unless
    told otherwise."""

    off: bool = False
    """Off."""

    def __post_init__(self) -> None:
        if self.number > 1:
            raise ValueError("number must be at most 1")


@click.command()
@options_of(Sample)
def sample(**values) -> None:
    click.echo(repr(made(Sample, values)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Sample()),
        (
            [
                *("--number", "1", "--maybe", "3", "--several", "x", "--several", "y"),
                *("--choice", "b", "--no-on", "--off"),
            ],
            Sample(1.0, 3, ("x", "y"), "b", on=False, off=True),
        ),
    ],
)
def test_options_from_a_dataclass(arguments, expected):
    assert CliRunner().invoke(sample, arguments).output == f"{expected!r}\n"


def test_options_out_of_range_are_usage_errors():
    result = CliRunner().invoke(sample, ["--number", "2"])
    assert isinstance(result.exception, UsageError)
    assert CliRunner().invoke(sample, ["--choice", "c"]).exit_code == 2
    assert "On, unless told otherwise." in CliRunner().invoke(sample, ["--help"]).output


def test_the_help_of_tag_has_a_section_for_each_purpose():
    shown = CliRunner().invoke(annotary, ["tag", "--help"]).output
    titles = [
        line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")
    ]
    assert titles[:2] == ["Options:", "Which tags an image gets:"]
    assert {"How annotations are written:", "How the network runs:"} <= set(titles)
    assert shown.index("How the network runs:") < shown.index("--precision")
    assert shown.count("--top ") == 1
