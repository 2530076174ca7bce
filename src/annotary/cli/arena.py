"""`annotary arena`: several taggers on the same images whose tags are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._evaluate_tagging import left_out, own_thresholds, read_aliases, truth_options
from annotary.cli._evaluating import FILE, first_failure, give, output_option
from annotary.cli._measuring import (
    check_replaceable,
    measuring_options,
    report_options,
    table,
)
from annotary.cli._options import SectionedCommand, made
from annotary.cli._output import one_line, tell
from annotary.cli._output_places import Outputs, check_places
from annotary.errors import NothingToDo, UsageError
from annotary.runtime import RuntimeOptions
from annotary.tasks.tag_selection import TaggingOptions

if TYPE_CHECKING:
    from annotary.cli._tagging_scores import Live, Saved, Scoring
    from annotary.cli._tagging_truth import Truth
    from annotary.evaluation.arena import Arena, ArenaResult, Contender
    from annotary.evaluation.tag_matching import TagMatch
    from annotary.records import Failure


@click.command("arena", cls=SectionedCommand, short_help="Compare taggers on the same images.")
@click.argument("dataset", type=FILE, metavar="DATASET")
@click.option(
    "--models",
    required=True,
    multiple=True,
    metavar="NAME,NAME",
    help="Models by name, hf:OWNER/NAME or dir:PATH, or folders of saved scores; with commas, or given several times.",
)
@click.option(
    "--threshold",
    multiple=True,
    metavar="NAME=X",
    help="The threshold of a model; otherwise its own thresholds, or 0.4. May be given several times.",
)
@click.option(
    "--save-scores",
    type=FILE,
    metavar="FOLDER",
    help="Keep the scores of each model in a folder there; what it holds already is not worked out again.",
)
@truth_options
@click.option(
    "--min-support",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Leave out tags that fewer images have.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="How often images are drawn to tell how certain numbers are; 0 for not at all.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the drawing."
)
@click.option(
    "--details",
    type=FILE,
    metavar="FILE",
    help="Write what each model reaches at each tag there, as JoyTag's detailed_metrics.txt.",
)
@click.option(
    "--report", type=FILE, metavar="FILE", help="Write the leaderboard as a page, in HTML."
)
@output_option
@report_options
@measuring_options
def command(dataset: Path, **values: Any) -> None:
    """Compare taggers on images of DATASET, whose tags are known and which none of them was trained on.

    DATASET is a folder that `annotary train dataset` wrote; a folder with a text of tags beside each image; or a table
    (.csv, .tsv, .jsonl, .parquet) with an image and its tags in each row. Only tags that all models know count.
    """
    click.get_current_context().exit(_arena(dataset, values))


def _arena(dataset: Path, values: dict[str, Any]) -> int:
    from annotary.cli._tagging_scores import Scoring, saved_first
    from annotary.cli._tagging_truth import read_truth
    from annotary.evaluation.arena import Arena
    from annotary.evaluation.tag_matching import match_tags

    _check(values)
    truth = read_truth(
        dataset,
        split=values["split"],
        image_column=values["image_column"],
        tag_column=values["tag_column"],
    )
    models = _models(values)
    vocabularies = {name: one.vocabulary.names for name, one in models.items()}
    match = match_tags(truth.tags, vocabularies, read_aliases(values["aliases"]))
    arena = Arena(_contenders(models, match, values["threshold"]))
    failures: list[Failure] = []
    scored: Sequence[Live | Saved] = list(models.values())
    if values["save_scores"] is not None:
        names = {id(one): name for name, one in models.items()}
        scored, failures = saved_first(
            scored, lambda one: _folder(values["save_scores"], names[id(one)]), truth, values
        )
    work = Scoring(scored, truth, values)
    for batch in work.batches():
        scores = [
            columns.scores(own) for columns, own in zip(match.models, batch.scores, strict=True)
        ]
        arena.update(scores, match.targets(batch.tags), match.known(truth.known(batch.numbers)))
    work.add_failures(failures)
    if not arena.images:
        raise NothingToDo(f"no image of {dataset} has scores{first_failure(work.failures)}")
    outputs = Outputs()
    report = _report(dataset, values, truth, models, match, arena, work, outputs)
    with outputs.one():
        give(report, values, lambda: _show(report))
    work.tell()
    outputs.finish()
    return 1 if work.failures else 0


def _check(values: Mapping[str, Any]) -> None:
    """Refuse what could not be written at the end.

    Raises:
        UsageError: Something else is where a file would go.
        OutputError: A file cannot be written there.
    """
    from annotary.cli._tagging_page import check_page
    from annotary.evaluation.arena_report import MARK
    from annotary.evaluation.tagging_files import read_detailed_metrics

    check_places(
        {f"--{name}": values[name] for name in ("output", "report", "details")},
        {"--save-scores": values["save_scores"]},
    )
    check_replaceable(values["output"], "arena")
    if values["report"] is not None:
        check_page(values["report"], MARK)
    details = values["details"]
    if details is not None and details.exists() and details.stat().st_size:
        read_detailed_metrics(details)  # nothing else is replaced


def _models(values: Mapping[str, Any]) -> dict[str, Live | Saved]:
    """The models by what they are called.

    Raises:
        UsageError: They are fewer than two, or one is named twice.
    """
    from annotary.cli._tagging_scores import Live, Saved

    told = [name.strip() for one in values["models"] for name in one.split(",") if name.strip()]
    if len(told) < 2 or len(set(told)) < len(told):
        raise UsageError(f"--models needs two or more different ones, but got {', '.join(told)}")
    options = made(RuntimeOptions, values)
    found = [
        Saved(Path(name)) if (Path(name) / "scores.json").is_file() else Live(name, options)
        for name in told
    ]
    names = [one.name for one in found]
    # Of two versions, or of checkpoints of one training, the card's name does not tell which is which.
    if len(set(names)) < len(names):
        names = [one.id for one in found]
    if len(set(names)) < len(names):
        names = told
    return dict(zip(names, found, strict=True))


def _contenders(
    models: Mapping[str, Live | Saved], match: TagMatch, told: Sequence[str]
) -> list[Contender]:
    from annotary.evaluation.arena import Contender

    fixed = {}
    for one in told:
        name, _, number = one.rpartition("=")
        known = [own for own, model in models.items() if name in (own, model.told, model.id)]
        try:
            fixed[known[0]] = TaggingOptions(threshold=float(number))
        except IndexError as error:
            listed = ", ".join(models)
            raise UsageError(f"--threshold {one!r} is of no model; there are: {listed}") from error
        except ValueError as error:
            raise UsageError(f"--threshold must be like joytag=0.4, but got {one!r}") from error
    found = []
    for (name, model), columns in zip(models.items(), match.models, strict=True):
        rule, thresholds = own_thresholds(model, fixed.get(name, TaggingOptions()))
        found.append(Contender(name, rule, columns.thresholds(thresholds)))
    return found


def _report(
    dataset: Path,
    values: Mapping[str, Any],
    truth: Truth,
    models: Mapping[str, Live | Saved],
    match: TagMatch,
    arena: Arena,
    work: Scoring,
    outputs: Outputs,
) -> dict[str, Any]:
    """All numbers; files that were asked for are written."""
    from annotary.evaluation.arena_report import arena_page
    from annotary.evaluation.tagging_files import detailed_metrics_text
    from annotary.sinks import write_atomically

    try:
        result = arena.result(
            match.names,
            minimum_support=values["min_support"],
            rounds=values["rounds"],
            seed=values["seed"],
        )
    except ValueError as error:
        raise UsageError(f"{error}; lower --min-support") from error
    vocabularies = {name: one.vocabulary.names for name, one in models.items()}
    report = {
        "command": "arena",
        "dataset": str(dataset),
        "images": arena.images,
        "images_without_scores": work.without_scores,
        "minimum_support": values["min_support"],
        "rounds": values["rounds"],
        "seed": values["seed"],
        **left_out(truth, vocabularies, match),
        "tags": len(result.tags),
        "tags_too_rare": len(match.names) - len(result.tags),
        **_of_result(result, arena, models),
        "per_tag": _per_tag(result, truth, models, match),
        "failures": [failure.to_json() for failure in work.failures],
    }
    if values["details"] is not None:
        with outputs.one():
            write_atomically(values["details"], detailed_metrics_text(result.detailed()))
    if values["report"] is not None:
        text = arena_page(report)
        with outputs.one():
            write_atomically(values["report"], text.encode("utf-8", "backslashreplace"))
    return report


def _of_result(
    result: ArenaResult, arena: Arena, models: Mapping[str, Live | Saved]
) -> dict[str, Any]:
    from annotary.evaluation.tagging_results import precision_recall

    told = result.to_json()
    place = {one.name: k for k, one in enumerate(arena.contenders)}
    for one in told["models"]:
        model = models[one["name"]]
        histograms = arena.streams[place[one["name"]]].histograms
        one |= {"id": model.id, "weights": model.weights}
        one["curve"] = precision_recall(histograms, result.chosen)
    return told


def _per_tag(
    result: ArenaResult, truth: Truth, models: Mapping[str, Live | Saved], match: TagMatch
) -> list[dict[str, Any]]:
    from annotary.evaluation.arena import RATES, number_or_none

    first = next(iter(models.values())).vocabulary.categories
    categories = [
        truth.categories[int(place)] or first[int(own)]
        for place, own in zip(match.dataset.first, match.models[0].first, strict=True)
    ]
    kept = [name for name, is_in in zip(categories, result.chosen, strict=True) if is_in]
    return [
        {
            "tag": tag,
            "category": kept[k],
            "support": int(result.support[k]),
            "models": {
                one.name: {
                    rate: number_or_none(float(one.rates[i, k])) for i, rate in enumerate(RATES)
                }
                for one in result.standings
            },
        }
        for k, tag in enumerate(result.tags)
    ]


def _folder(folder: Path, name: str) -> Path:
    """The folder of a model's scores, whatever signs its name has."""
    return folder / "".join(sign if sign.isalnum() or sign in "-_.@" else "_" for sign in name)


def _show(report: Mapping[str, Any]) -> None:
    told = f"{report['images']:,} images, {report['tags']:,} tags of {report['minimum_support']:,} or more images"
    click.echo(one_line(f"{report['dataset']}: {told}") + "\n")
    head = ("model", "precision", "recall", "F1", "AP", "micro F1", "weighted F1", "thresholds")
    rows: list[Sequence[str]] = [head]
    for one in report["models"]:
        macro = (_told(one, rate) for rate in ("precision", "recall", "f1", "ap"))
        more = (f"{one[kind]['f1']:.4f}" for kind in ("micro", "weighted"))
        rows.append((one_line(one["name"]), *macro, *more, one["rule"]))
    click.echo(table(rows, numbers=range(1, 7)))
    duels: list[Sequence[str]] = [
        ("two models", "difference of F1", "tags won by F1", "tags won by AP")
    ]
    for one in report["duels"]:
        apart = f"{one['f1_difference']:+.4f}"
        if one["interval"] is not None:
            apart += " ({:+.4f} to {:+.4f})".format(*one["interval"])
        wins = (
            f"{one[f'{rate}_wins']:,} : {one[f'{rate}_losses']:,}, {one[f'{rate}_ties']:,} equal"
            for rate in ("f1", "ap")
        )
        duels.append((one_line(f"{one['first']} and {one['second']}"), apart, *wins))
    click.echo("\n" + table(duels, numbers=[]))
    if report["rounds"]:
        tell(f"in brackets: where it lies with 95 % certainty, by {report['rounds']:,} draws")
    unknown, rare = report["tags_without_model"]["count"], report["tags_too_rare"]
    tell(
        f"tags of the images that are left out: {unknown:,} not all models know, {rare:,} too rare"
    )


def _told(one: Mapping[str, Any], rate: str) -> str:
    found = one["intervals"].get(rate)
    value = f"{one['macro'][rate]:.4f}"
    return value if found is None else value + " ({:.3f}-{:.3f})".format(*found)
