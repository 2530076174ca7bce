"""Commands that have commands below them, each in a file of its own that is imported when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

_SHORT_HELP = re.compile(r'^@click\.\w+\(.*?\bshort_help="([^"\\]*)"', re.M | re.S)
"""In the file of a command, whose first click command or group is itself."""


class LazyGroup(click.Group):
    """A group of commands. Its help is read from their files, so that none is imported for it.

    Args:
        modules: The name of each command to the file of this folder that holds it, as `command`.
    """

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._modules = dict(modules)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._modules:
            return None
        command = import_module(f"annotary.cli.{self._modules[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does in a line."""
        rows = []
        for name, module in self._modules.items():
            told = summary_in(_source(f"annotary.cli.{module}"))
            if told is None:
                command = self.get_command(ctx, name)
                told = "" if command is None else command.get_short_help_str(formatter.width)
            rows.append((name, told))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def summary_in(source: str | None) -> str | None:
    """What a command does in a line, from its file, if it says so there."""
    found = None if source is None else _SHORT_HELP.search(source)
    return None if found is None else found.group(1)


def _source(module: str) -> str | None:
    """The text of a module, if there is one: an install may have none."""
    spec = find_spec(module)
    try:
        return Path(spec.origin).read_text("utf-8") if spec and spec.origin else None
    except (OSError, UnicodeDecodeError):
        return None
