"""`annotary train probe`: trains a new head on the features of a model that stays as it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._options import SectionedCommand, made, options_of
from annotary.runtime import RuntimeOptions
from annotary.training.probe_recipe import ProbeRecipe

if TYPE_CHECKING:
    from annotary.training.probe_run import ProbeResult


@click.command("probe", cls=SectionedCommand, short_help="Train a new head on a model's features.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The dataset, as annotary train dataset makes it.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The folder of the run. One that holds a run of the same settings is continued.",
)
@options_of(ProbeRecipe, RuntimeOptions)
@click.option("--resume", is_flag=True, help="Only go on with a run; do not begin a new one.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar and no counts; errors are told.")
def command(**values: Any) -> int:
    """Train a linear head for tags of your own on the features of a model, which stays as it is.

    The features are computed once and kept in the output, so that the same command goes on where it was stopped. What
    comes out is a model that annotary tag takes.
    """
    from importlib.util import find_spec

    from annotary.cli import Stopped
    from annotary.cli._output import tell
    from annotary.cli._progress import progress_bar
    from annotary.errors import MissingExtra
    from annotary.pipeline import Outcome

    recipe, runtime = made(ProbeRecipe, values), made(RuntimeOptions, values)
    if find_spec("torch") is None or find_spec("pyarrow") is None:
        raise MissingExtra("Training a probe", "train")
    from annotary.training.dataset.index import TagDataset

    dataset = TagDataset(values["data"])
    import torch

    from annotary.training.probe_run import run_probe

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    quiet = values["quiet"]
    count = len(dataset.train) + len(dataset.validation)
    try:
        with progress_bar("features", lambda: count, quiet=quiet) as bar:
            result = run_probe(
                recipe,
                dataset,
                values["output"],
                runtime,
                must_continue=values["resume"],
                report=lambda done, _: bar.update(Outcome(done=done)),
                tell=(lambda _: None) if quiet else tell,
            )
    except KeyboardInterrupt as error:
        raise Stopped("stopped; the same command goes on") from error
    _tell_result(result, values)
    return 1 if result.failed else 0


def _tell_result(result: ProbeResult, values: dict[str, Any]) -> None:
    """Tell the model, how good it is, and how it is used."""
    from annotary.cli._output import tell

    if values["as_json"]:
        told = {**asdict(result), "tagger": str(result.tagger)}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    if not values["quiet"]:
        if result.was_done:
            tell("the run was done before")
        if result.failed:
            place = values["output"] / "failures.jsonl"
            tell(f"{result.failed:,} images could not be read and count nothing; see {place}")
        tell(_measured(result))
        tell(f"use it: annotary tag PHOTOS --model dir:{result.tagger}")
    click.echo(str(result.tagger))


def _measured(result: ProbeResult) -> str:
    if not result.metrics:
        return "nothing was measured: there are no validation images"
    found = result.metrics
    told = (
        f"on {result.validation:,} validation images: mAP {found['map']:.4f}, macro F1"
        f" {found['macro_f1']:.4f} and micro F1 {found['micro_f1']:.4f} at 0.5"
    )
    if "fitted_macro_f1" in found:
        told += (
            f"; {found['fitted_macro_f1']:.4f} and {found['fitted_micro_f1']:.4f} at the thresholds"
            " that were fitted to them"
        )
    return told
