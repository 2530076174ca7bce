"""`annotary evaluate`: how good a model is, on images that somebody has labelled, captioned or boxed."""

from __future__ import annotations

from importlib import import_module

import click

_MODULES = {
    "zero-shot": "_evaluate_zero_shot",
    "retrieval": "_evaluate_retrieval",
    "captions": "_evaluate_captions",
    "detection": "_evaluate_detection",
}


class _Measures(click.Group):
    """Imports what measures when it is asked for: the list of all commands needs none of it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        command = import_module(f"annotary.cli.{_MODULES[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command


@click.group(
    "evaluate", cls=_Measures, short_help="Measure a model on images whose truth is known."
)
def command() -> None:
    """Measure how good a model is, on images that somebody has labelled, captioned or boxed."""
