"""The command line: one file a command, and the folder is the registry.

A command is a module with `command`, a click command; a new one is a new file (or a plugin, see `annotary.registry`).
Modules of commands import networks' libraries and the like when they are called, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import click

from annotary import __version__, registry
from annotary.cli._groups import summary_in
from annotary.errors import AnnotaryError, UnknownName, UsageError


class Stopped(AnnotaryError):
    """A person stopped a run; the message says whether it can go on."""


class _Commands(click.Group):
    """Finds commands in this folder when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(registry.names("cli"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        try:
            command = registry.load("cli", cmd_name).command
        except UnknownName:
            raise
        except UsageError as error:  # a plugin that is broken must not break the others
            return _broken(cmd_name, error)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does in a line."""
        names = self.list_commands(ctx)
        room = formatter.width - 6 - max(map(len, names))
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summary(ctx, name, room)) for name in names])

    def _summary(self, ctx: click.Context, name: str, room: int) -> str:
        """What a command does, from its file where it says it: all of them would take a second to import."""
        source = registry.source("cli", name)
        told = summary_in(source)
        if told is not None:
            return told
        command = self.get_command(ctx, name)
        return "" if command is None else command.get_short_help_str(room)


def _broken(name: str, error: UsageError) -> click.Command:
    def complain() -> NoReturn:
        raise error

    return click.Command(name, callback=complain, short_help="(cannot be loaded)")


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="annotary %(version)s")
def annotary() -> None:
    """Give every image its tags, on this machine.

    Images are files, folders, lists of paths, tables, archives, URLs, or - for a list or an image on standard input.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    The exit code is 0 when all went well, 1 when some images failed, 2 when it could not be done, 130 on Ctrl-C and 143
    when the system asks to stop.
    """
    # Without a terminal or a log, what would be told is told to nobody.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    signals: list[int] = []
    _stop_on_request(signals)
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
    except (Stopped, KeyboardInterrupt, click.Abort) as error:
        code = _complain(str(error) or "stopped", 128 + (signals or [signal.SIGINT])[0])
    except AnnotaryError as error:
        code = _complain(str(error))
    except OSError as error:
        code = _complain(f"{error.filename or 'standard output'}: {error.strerror}")
    except Exception:
        if not signals:
            raise
        # A library that was interrupted while it was imported says so in its own way.
        code = _complain("stopped", 128 + signals[0])
    code = code if isinstance(code, int) else 0
    if code >= 2 and any(t.name.startswith("annotary-") for t in threading.enumerate()):
        # The run ended early. All files are closed, but threads that wait for a server would be waited for.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _stop_on_request(signals: list[int]) -> None:
    """End as on Ctrl-C when the system asks for it, so that files are closed; the signal is noted."""

    def stop(number: int, _: object) -> NoReturn:
        signals.append(number)
        raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        before = (signal.SIG_DFL, signal.default_int_handler)
        if number is not None and signal.getsignal(number) in before:  # nohup ignores one
            signal.signal(number, stop)


def _told(error: click.ClickException) -> str:
    """The message of click's error, with the way to help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "annotary"
    message = error.format_message().rstrip(".").replace("'. (", "' (")
    return f"{message} (see {path} --help)"


def _complain(message: str, code: int = 2) -> int:
    """One line on standard error."""
    from annotary.cli._output import tell

    tell("annotary: " + " ".join(message.split()))
    return code
