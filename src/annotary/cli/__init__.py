"""The command line: one file a command, and the folder is the registry.

A command is a module with `command`, a click command; a new one is a new file (or a plugin, see `annotary.registry`).
Modules of commands import what they need when they are called, so that `annotary --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from annotary import __version__, registry
from annotary.errors import AnnotaryError


class _Commands(click.Group):
    """Finds commands in this folder when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(registry.names("cli"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in registry.names("cli"):
            return None
        command = registry.load("cli", cmd_name).command
        assert isinstance(command, click.Command)
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="annotary %(version)s")
def annotary() -> None:
    """Give every image its tags, on this machine.

    Images are files, folders, lists of paths (.txt, .jsonl), URLs, or - for a list or an image on standard input.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 all well, 1 images failed, 2 it could not be done, 130 Ctrl-C."""
    try:
        code = annotary.main(
            None if arguments is None else list(arguments),
            prog_name="annotary",
            standalone_mode=False,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else str(error))
        code = 2
    except click.ClickException as error:
        code = _complain(_told(error))
    except AnnotaryError as error:
        code = _complain(str(error))
    except (KeyboardInterrupt, click.Abort):
        code = _complain("stopped; the same command goes on where it stopped", 130)
    except BrokenPipeError:
        # Whoever reads our output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _told(error: click.ClickException) -> str:
    """The message of click's error, with the way to help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "annotary"
    message = error.format_message().rstrip(".")
    return f"{message} (see {path} --help)"


def _complain(message: str, code: int = 2) -> int:
    """One line on standard error."""
    line = " ".join(message.split())
    sys.stderr.write(f"annotary: {line}\n".encode("utf-8", "backslashreplace").decode())
    sys.stderr.flush()
    return code
