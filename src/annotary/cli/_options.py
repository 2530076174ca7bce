"""Options of commands from dataclasses: a field is an option, and the text under it is its help."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click

from annotary.errors import UsageError

Made = TypeVar("Made")
Function = TypeVar("Function", bound=Callable[..., Any])


class SectionedCommand(click.Command):
    """A command whose help shows the options of each dataclass under what the dataclass is for."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all sections: the command's own options first, help last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class _SectionedOption(click.Option):
    """An option that knows its section."""

    def __init__(self, *arguments: Any, section: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


def options_of(
    *records: type, prefix: str = "", without: Collection[str] = ()
) -> Callable[[Function], Function]:
    """Give a command an option for every field of some dataclasses, in their order.

    Args:
        records: The dataclasses.
        prefix: What the options' names begin with, where fields of several tasks would have one name: `box` makes
            `--box-threshold` of `threshold`.
        without: Fields that get no option.
    """

    def decorate(function: Function) -> Function:
        for record in reversed(records):
            for entry in reversed(fields(record)):
                if entry.name not in without:
                    function = _option(record, entry, prefix)(function)
        return function

    return decorate


def made(record: type[Made], values: Mapping[str, Any], *, prefix: str = "") -> Made:
    """A dataclass from the values of a command's options.

    Args:
        record: The dataclass.
        values: The values; a field without an option keeps its default.
        prefix: What the options' names begin with.

    Raises:
        UsageError: A value is out of range.
    """
    names = {entry.name: _named(entry.name, prefix) for entry in fields(cast(Any, record))}
    chosen = {name: values[option] for name, option in names.items() if option in values}
    try:
        return record(**chosen)
    except ValueError as error:
        raise UsageError(_with_flag(str(error), names)) from error


def given(values: Mapping[str, Any], *records: type, prefix: str = "") -> Iterator[str]:
    """The flags of options of some dataclasses that were given another value than their default."""
    for entry in (entry for record in records for entry in fields(record)):
        name = _named(entry.name, prefix)
        if values.get(name, entry.default) not in (entry.default, ()):
            yield "--" + name.replace("_", "-")


def _named(name: str, prefix: str) -> str:
    return f"{prefix}_{name}" if prefix else name


def _with_flag(message: str, names: Mapping[str, str]) -> str:
    """A message that begins with a field's name, so that it begins with the option's."""
    name = message.split(" ", 1)[0]
    if name not in names:
        return message
    return "--" + names[name].replace("_", "-") + message[len(name) :]


def _option(record: type, entry: Field[Any], prefix: str) -> Callable[[Function], Function]:
    hint = typing.get_type_hints(record)[entry.name]
    name = _named(entry.name, prefix)
    flag = "--" + name.replace("_", "-")
    default = None if entry.default is MISSING else entry.default
    text = help_texts(record).get(entry.name, "")
    section = (inspect.getdoc(record) or "Options").partition("\n")[0].rstrip(".")
    if hint is bool:
        if default:
            flag = f"{flag}/--no-{flag[2:]}"
        return click.option(
            flag,
            name,
            cls=_SectionedOption,
            section=section,
            is_flag=True,
            default=default,
            help=text,
        )
    kind, multiple = _kind(hint)
    return click.option(
        flag,
        name,
        cls=_SectionedOption,
        section=section,
        type=kind,
        metavar=entry.metadata.get("metavar"),
        multiple=multiple,
        default=default or None if multiple else default,
        show_default=default not in (None, "") and not multiple,
        help=text,
    )


def _kind(hint: Any) -> tuple[Any, bool]:
    """The click type of a field's type, and whether the option may be given several times."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _kind(inner)
    if typing.get_origin(hint) is tuple:
        return _kind(arguments[0])[0], True
    if typing.get_origin(hint) is Literal:
        return click.Choice(list(arguments)), False
    return (click.Path(path_type=Path) if hint is Path else hint), False


@cache
def help_texts(record: type) -> dict[str, str]:
    """The text under every field of a dataclass."""
    try:
        (body,) = ast.parse(inspect.getsource(record)).body
    except OSError:  # an install without source files
        return {}
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            texts[before.target.id] = inspect.cleandoc(str(after.value.value)).replace("\n", " ")
    return texts
