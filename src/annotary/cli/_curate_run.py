"""`annotary curate run`: the steps of curation as one pipeline that a file declares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._curating import step_bar
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.curation.steps import StepOptions

if TYPE_CHECKING:
    from annotary.curation.plan import Outcome, PlannedStep, PlanResult
    from annotary.curation.steps import OnPart


@click.command("run", cls=SectionedCommand, short_help="Do several steps that a file declares.")
@click.argument("pipeline", type=click.Path(path_type=Path), metavar="PIPELINE.toml")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder of all steps, in place of the one that the file says.",
)
@click.option(
    "--from",
    "begin",
    metavar="STEP",
    help="Make this step and all behind it anew; those before it must be done. A number, or a name.",
)
@click.option("--until", metavar="STEP", help="The last step that is done. A number, or a name.")
@click.option("--check", is_flag=True, help="Only look whether all that the file says is there.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json on standard output.")
@click.option("--quiet", is_flag=True, help="No progress bars and no counts; errors are told.")
@options_of(StepOptions, without=("shard", "on_existing"))
def command(pipeline: Path, **values: Any) -> None:
    """Do the steps that PIPELINE.toml declares, each in a folder of its own, and write a report of all.

    The same command goes on where it was stopped. A step of which the options or the input have changed is made anew,
    and so are those behind it; others are left alone.
    """
    click.get_current_context().exit(_run(pipeline, values))


def _run(pipeline: Path, values: dict[str, Any]) -> int:
    from annotary.cli import Stopped
    from annotary.cli._output import tell
    from annotary.curation.plan import REPORT_JSON, REPORT_PAGE, check_plan, read_plan, run_plan

    plan = read_plan(pipeline)
    if values["output"] is not None:
        plan = replace(plan, output=Path(values["output"]))
    watcher = _Watcher(quiet=values["quiet"])
    if values["check"]:
        check_plan(plan, made(StepOptions, values))
        if not values["quiet"]:
            count = len(plan.steps)
            names = ", ".join(step.name for step in plan.steps)
            tell(f"{count} step{'s' if count > 1 else ''}: {names}")
        return 0
    try:
        result = run_plan(
            plan,
            begin=values["begin"],
            until=values["until"],
            steps=made(StepOptions, values),
            watcher=watcher,
        )
    except KeyboardInterrupt as error:
        raise Stopped("stopped; the same command goes on where it stopped") from error
    if values["as_json"]:
        report = json.loads((result.folder / REPORT_JSON).read_text(encoding="utf-8"))
        click.echo(json.dumps(report, ensure_ascii=False))
    if not values["quiet"]:
        _tell_result(result, is_told=not values["as_json"])
        tell(f"the report is in {result.folder / REPORT_PAGE}")
    return 1 if result.failures else 0


class _Watcher:
    """Tells what a pipeline does on standard error.

    Args:
        quiet: Tell nothing but what is made anew.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def note(self, text: str) -> None:
        """Tell it."""
        from annotary.cli._output import tell

        tell(text)

    def working(self, what: str, count: int, unit: str) -> AbstractContextManager[OnPart]:
        """Show a bar."""
        if unit == "images":
            return _image_bar(what, count, quiet=self._quiet)
        return step_bar(what, count, quiet=self._quiet)

    def ended(self, step: PlannedStep, outcome: Outcome) -> None:
        """Tell the counts."""
        if self._quiet:
            return
        if outcome.was_done:
            told = f"{step.name}: done before, {outcome.rows_out:,} {_unit(outcome)}"
        else:
            told = f"{step.name}: {outcome.rows_in:,} in, {outcome.rows_out:,} out in {outcome.seconds:.1f} s"
        if outcome.failures:
            told += f"; {outcome.failures:,} broken, listed in its _failures.jsonl"
        self.note(told)


@contextmanager
def _image_bar(what: str, count: int, *, quiet: bool) -> Iterator[OnPart]:
    """A bar that counts images."""
    from annotary.cli._progress import progress_bar
    from annotary.pipeline import Outcome

    with progress_bar(what, lambda: count, quiet=quiet) as bar:
        yield lambda done, _: bar.update(Outcome(done=done))


def _unit(outcome: Outcome) -> str:
    return "entries" if outcome.is_of_entries else "rows"


def _tell_result(result: PlanResult, *, is_told: bool) -> None:
    """The table at the end."""
    from annotary.cli._measuring import table
    from annotary.cli._output import one_line, tell

    rows: list[Sequence[str]] = [("step", "in", "out", "share", "seconds", "why")]
    for one in result.outcomes:
        is_share = 0 < one.rows_in >= one.rows_out  # of lists of texts each text becomes a row
        share = f"{one.rows_out / one.rows_in:.1%}" if is_share else "-"
        seconds = "before" if one.was_done else f"{one.seconds:.1f}"
        rows.append(
            (one.name, f"{one.rows_in:,}", f"{one.rows_out:,}", share, seconds, _why(one.dropped))
        )
    if is_told:
        for line in table(rows, numbers=[1, 2, 3, 4]).split("\n"):
            click.echo(one_line(line))
    if result.tables is not None:
        what = "what is left" if result.is_whole else "what is left so far"
        tell(f"{what} is in {result.tables}")


def _why(dropped: Any) -> str:
    """Why rows were dropped, the most frequent reasons first."""
    from annotary.cli._curating import of_more

    reasons = sorted(dropped.items(), key=lambda one: (-one[1], one[0]))
    told = ", ".join(f"{rows:,} {why}" for why, rows in reasons[:4])
    return told + (f" and {of_more(len(reasons) - 4)}" if len(reasons) > 4 else "")
