"""`annotary curate metadata`: the list of entries that texts are looked through for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._measuring import check_replaceable, print_report, write_report
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.curation.metadata import MetadataOptions, MetadataSources
from annotary.errors import UsageError

if TYPE_CHECKING:
    from annotary.curation.metadata import Metadata

_COMMAND = "curate metadata"
_FILE = click.Path(path_type=Path)
_MOST_TOLD = 5  # bad lines that are told one by one


@click.command("metadata", cls=SectionedCommand, short_help="Make the list of entries.")
@click.option(
    "--output",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="The list: .txt, .json, .csv, .jsonl or .parquet.",
)
@click.option(
    "--report",
    type=_FILE,
    metavar="FILE",
    help="What was read, kept and dropped, and why; FILE.report.json beside the list without it.",
)
@click.option(
    "--coverage",
    type=_FILE,
    metavar="FILE",
    help="Names, one a line, such as those of classes: how many of them are entries?",
)
@click.option(
    "--on-existing",
    type=click.Choice(["refuse", "overwrite"]),
    default="refuse",
    show_default=True,
    help="What to do with a file in the place of OUTPUT that is not as this command wrote it.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the report on standard output as one object."
)
@click.option("--quiet", is_flag=True, help="Tell nothing but errors.")
@options_of(MetadataSources, MetadataOptions)
def command(**values: Any) -> None:
    """Make the list of entries that texts are looked through for, as MetaCLIP does.

    Entries are the numbers from 0 to 99, the names of WordNet's synsets, and whatever is given of words, pairs of words
    and titles. With nothing but --output they are the numbers and English WordNet.
    """
    click.get_current_context().exit(_metadata(values))


def _metadata(values: dict[str, Any]) -> int:
    from annotary.cli._output import tell
    from annotary.curation._entry_files import entry_file, writer_of
    from annotary.curation.metadata import build_metadata, coverage
    from annotary.sinks import write_atomically

    output: Path = values["output"]
    beside = _Beside.of(output, values["report"])
    sources, options = made(MetadataSources, values), made(MetadataOptions, values)
    names = None if values["coverage"] is None else _names(values["coverage"])
    writer_of(output)
    known = beside.check(output, overwrites=values["on_existing"] == "overwrite")
    is_quiet: bool = values["quiet"]
    found = build_metadata(
        sources, options, on_source=None if is_quiet else lambda name: tell(f"reading {name}")
    )
    content = entry_file(found.entries, output)
    dead = _lines(found)
    report = {
        "command": _COMMAND,
        "output": output.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        **found.report,
        "coverage": None if names is None else coverage(names, (one.text for one in found.entries)),
    }
    report["never_match"] = {
        "file": beside.dead.name if dead else None,
        "sha256": hashlib.sha256(dead).hexdigest() if dead else None,
        **report["never_match"],
    }
    # The report goes first: with it, a run that is killed in between leaves nothing that the next one refuses.
    old = [digest for path in (output, beside.dead) if (digest := _digest(path)) is not None]
    write_report(beside.report, {**report, "replaces": old})
    if dead:
        write_atomically(beside.dead, dead)
    elif _digest(beside.dead) in known:
        beside.dead.unlink()
    write_atomically(output, content)
    write_report(beside.report, report)
    if values["as_json"]:
        print_report(report)
    if not is_quiet:
        _tell(report, output, beside)
    return 1 if found.broken else 0


class _Beside:
    """The files beside a list: its report, and the entries that never match.

    Attributes:
        report: The report.
        dead: JSON Lines with the entries that no text can match.
    """

    def __init__(self, report: Path, dead: Path) -> None:
        self.report = report
        self.dead = dead

    @classmethod
    def of(cls, output: Path, report: Path | None) -> _Beside:
        """The files of a list.

        Raises:
            UsageError: Two of them would be one.
        """
        made = cls(
            report or output.with_name(f"{output.name}.report.json"),
            output.with_name(f"{output.name}.dead.jsonl"),
        )
        if len({output.absolute(), made.report.absolute(), made.dead.absolute()}) < 3:
            raise UsageError(f"--report {made.report} has another use; give it another name")
        return made

    def check(self, output: Path, *, overwrites: bool) -> set[str]:
        """Refuse to take the place of anything but what this command wrote; gives the digests of what it wrote.

        Raises:
            UsageError: Something else is there.
        """
        for path in (output, self.dead, self.report):
            if path.is_dir():
                raise UsageError(f"{path} is a folder")
        if not overwrites:
            check_replaceable(self.report, _COMMAND)
        written = _written(self.report)
        for path in (output, self.dead):
            if path.exists() and not overwrites and _digest(path) not in written:
                raise UsageError(
                    f"{path} is there already, and not as `annotary {_COMMAND}` wrote it; "
                    "--on-existing overwrite replaces it"
                )
        return written


def _written(report: Path) -> set[str]:
    """The digests of what the last run wrote, by its report."""
    try:
        known = json.loads(report.read_text(encoding="utf-8"))
        digests = [known["sha256"], known["never_match"]["sha256"], *known.get("replaces", ())]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return set()  # there is none, or it was changed: then nothing is known to be this command's
    return {digest for digest in digests if isinstance(digest, str)}


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"--coverage {path}: {told}") from error


def _lines(found: Metadata) -> bytes:
    """The entries that never match, as JSON Lines."""
    lines = (
        json.dumps(
            {"entry": one.text, "source": one.source, "count": one.count}, ensure_ascii=False
        )
        for one in found.dead
    )
    return "".join(line + "\n" for line in lines).encode()


def _tell(report: Mapping[str, Any], output: Path, beside: _Beside) -> None:
    """The counts of each source, and what else there is to know, on standard error."""
    from annotary.cli._measuring import table
    from annotary.cli._output import tell

    rows: list[Sequence[str]] = [("source", "read", "entries", "dropped")]
    for name, one in report["sources"].items():
        dropped = "; ".join(f"{count:,} {why}" for why, count in one["dropped"].items())
        rows.append((name, f"{one['texts']:,}", f"{one['entries']:,}", dropped))
    for line in table(rows, numbers=[1, 2]).split("\n"):
        tell(line)
    for name, one in report["sources"].items():
        _tell_source(name, one, report["limits"]["bigram_pmi"])
    never = report["never_match"]
    if never["count"]:
        done = "kept" if never["kept"] else "left out"
        tell(f"{never['count']:,} entries that no text can match were {done}; see {beside.dead}")
    covered = report["coverage"]
    if covered is not None:
        tell(
            f"{covered['found']:,} of {covered['names']:,} names are entries, and "
            f"{covered['found_in_lower_case']:,} more are in lower case"
        )
    tell(f"{report['entries']:,} entries in {output}; the report is in {beside.report}")


def _tell_source(name: str, one: Mapping[str, Any], pmi: float) -> None:
    from annotary.cli._output import tell

    for why, count in one.get("rows_left_out", {}).items():
        if count:
            tell(f"{name}: {count:,} rows not counted: {why}")
    malformed = one.get("malformed", {"count": 0, "first": []})
    for line in malformed["first"][:_MOST_TOLD]:
        tell(f"{name}: skipped {line}")
    if malformed["count"] > _MOST_TOLD:
        tell(
            f"{name}: {malformed['count']:,} rows skipped in all; the report has the first hundred"
        )
    for broken in one.get("broken", []):
        tell(f"{name}: {broken}; what was read of it counts")
    highest = one.get("highest_possible_pmi")
    if highest is not None and highest < pmi:
        tell(
            f"{name}: of so few words no pair can have a PMI of {pmi:g}, at most {highest:g}; "
            "--bigram-pmi sets another limit"
        )
