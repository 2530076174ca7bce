"""`annotary train tagger`: trains a tagger by a recipe, on a dataset of `annotary train dataset`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annotary.training.distributed import Processes
    from annotary.training.recipe import TaggerRecipe
    from annotary.training.trainer import Trainer, TrainingResult


@click.command("tagger", short_help="Train a tagger by a recipe.")
@click.argument("recipe", required=False, metavar="RECIPE")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The dataset, as annotary train dataset makes it.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder of the run. One that holds a run of the same recipe is continued.",
)
@click.option(
    "--set",
    "changed",
    multiple=True,
    metavar="KEY=VALUE",
    help="A value in place of the recipe's, such as optimiser.learning_rate=1e-3 or stages.1.samples=1000."
    " May be given several times.",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Only tell what the run will be like: samples, steps, memory, hours. Nothing is written.",
)
@click.option(
    "--no-plan", is_flag=True, help="Begin at once, without measuring steps for the plan."
)
@click.option("--resume", is_flag=True, help="Only go on with a run; do not begin a new one.")
@click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda", "mps")),
    default="auto",
    show_default=True,
    help="Where the network runs; auto takes NVIDIA's GPU where there is one.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores that each process computes with.")
@click.option("--recipes", "list_recipes", is_flag=True, help="List the recipes that ship.")
@click.option("--json", "as_json", is_flag=True, help="Print the result, or the plan, as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar and no plan; errors are told.")
def command(recipe: str | None, **values: Any) -> int:
    """Train a tagger by RECIPE, which is a TOML file or the name of a recipe that ships (see --recipes).

    The same command goes on where it was stopped, with the same bits as if it had not been. With several GPUs, or on
    several machines, start it with torchrun: torchrun --nproc-per-node 8 -m annotary train tagger ...
    """
    if values["list_recipes"]:
        _list_recipes()
        return 0
    missing = (
        ("RECIPE; --recipes lists those that ship", recipe),
        ("--data DIR, a folder that annotary train dataset wrote", values["data"]),
    )
    for what, value in missing:
        if value is None:
            raise click.UsageError(f"say {what}", click.get_current_context())
    if values["output"] is None and not values["only_plan"]:
        raise click.UsageError(
            "say --output DIR, or --plan to be told the plan alone", click.get_current_context()
        )
    assert recipe is not None
    return _train(recipe, values)


def _list_recipes() -> None:
    """Each on a line, with what it is."""
    from annotary.training.recipe import read_recipe, recipe_names

    names = recipe_names()
    for name in names:
        click.echo(f"{name.ljust(max(map(len, names)))}  {read_recipe(name).description}")


def _train(name: str, values: dict[str, Any]) -> int:
    """Train; 1 where some images could not be had, otherwise 0."""
    from importlib.util import find_spec

    from annotary.cli import Stopped
    from annotary.errors import MissingExtra
    from annotary.training.dataset.index import TagDataset
    from annotary.training.recipe import read_recipe

    recipe = read_recipe(name, values["changed"])
    if find_spec("torch") is None or find_spec("pyarrow") is None:
        raise MissingExtra("Training a tagger", "train")
    dataset = TagDataset(values["data"])
    import torch

    from annotary.training.distributed import running_processes
    from annotary.training.trainer import Trainer

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    with running_processes(values["device"]) as processes:
        trainer = Trainer(
            recipe,
            dataset,
            values["output"] or Path(),
            processes,
            must_continue=values["resume"],
            quiet=values["quiet"],
        )
        if not values["only_plan"]:
            trainer.check_output()  # measuring the plan may take minutes
        if processes.is_first and not values["quiet"]:
            _warn_of_unheeded(recipe, name, values["changed"])
        if values["only_plan"] or not (values["no_plan"] or values["quiet"]):
            _tell_plan(trainer, processes, values)
        if values["only_plan"]:
            return 0
        try:
            result = trainer.run()
        except KeyboardInterrupt as error:
            raise Stopped("stopped; the same command goes on") from error
        if processes.is_first:
            _tell_result(result, values)
    # torchrun takes any other code of one of several processes for a crash.
    return 1 if result.failed and processes.count == 1 else 0


def _warn_of_unheeded(recipe: TaggerRecipe, name: str, changed: Sequence[str]) -> None:
    """Tell which keys of the user's have no effect."""
    from annotary.cli._output import tell
    from annotary.training.recipe import unheeded_keys

    if keys := unheeded_keys(recipe, name, changed):
        verb = "has" if len(keys) == 1 else "have"
        tell(
            f"warning: {', '.join(keys)} {verb} no effect beside network.start, whose own architecture is taken over"
        )


def _tell_plan(trainer: Trainer, processes: Processes, values: dict[str, Any]) -> None:
    """Measure some steps, and tell what the run will be like."""
    from annotary.cli._output import tell
    from annotary.training.plan import make_plan, plan_lines

    if trainer.is_begun and not values["only_plan"]:
        return
    plan = make_plan(trainer.recipe, trainer.dataset, processes)
    if not processes.is_first:
        return
    if values["only_plan"] and values["as_json"]:
        click.echo(json.dumps(plan.to_json(), ensure_ascii=False))
        return
    for line in plan_lines(plan):
        if values["only_plan"]:
            click.echo(line)
        else:
            tell(line)


def _tell_result(result: TrainingResult, values: dict[str, Any]) -> None:
    """Tell the best checkpoint, how good it is, and how it is used."""
    from annotary.cli._output import tell

    if values["as_json"]:
        told = {
            key: str(one) if isinstance(one, Path) else one for key, one in asdict(result).items()
        }
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    if not values["quiet"]:
        if result.was_done:
            tell(f"the run was done before: {result.samples:,} samples")
        if result.failed:
            place = values["output"] / "failures.jsonl"
            tell(f"{result.failed:,} images could not be had and count nothing; see {place}")
        names = {"map": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1", "loss": "loss"}
        measured = ", ".join(
            f"{names[name]} {result.metrics[name]:.4f}" for name in names if name in result.metrics
        )
        tell(f"best checkpoint: {measured or 'nothing was measured, so it is the last'}")
        tell(f"use it: annotary tag PHOTOS --model dir:{result.best}")
    click.echo(str(result.best))
