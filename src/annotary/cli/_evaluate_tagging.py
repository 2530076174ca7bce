"""`annotary evaluate tagging`: how well a tagger tags images whose tags are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from annotary.cli._annotating import DEFAULT_MODEL, Function, model_option
from annotary.cli._evaluating import FILE, first_failure, give, image_column_option, output_option
from annotary.cli._measuring import (
    check_replaceable,
    measuring_options,
    percent,
    report_options,
    table,
)
from annotary.cli._options import SectionedCommand, given, made, options_of
from annotary.cli._output import one_line, tell
from annotary.cli._output_places import Outputs, check_places
from annotary.errors import NothingToDo, UsageError
from annotary.evaluation.tagging_thresholds import FittingOptions
from annotary.runtime import RuntimeOptions
from annotary.tasks.tag_selection import TaggingOptions

if TYPE_CHECKING:
    from annotary.cli._tagging_scores import Live, Saved
    from annotary.cli._tagging_truth import Truth
    from annotary.evaluation.tag_matching import TagMatch
    from annotary.evaluation.tagging import TagCounts
    from annotary.evaluation.tagging_results import Tags
    from annotary.evaluation.tagging_streams import TaggingStream
    from annotary.evaluation.tagging_thresholds import FittedThresholds
    from annotary.records import Failure

MOST_SHOWN = 10
"""Tags that are shown."""

MOST_LISTED = 1000
"""Names of tags that are left out, in a report."""

_WRITTEN = ("output", "report", "full_metrics", "save_thresholds")
"""Of the options, those that ask for a file."""

_NO_THRESHOLDS = ("top", "exclude", "keep", "mcut", "min_tags", "rating")
"""Of the options of tagging, those that no threshold comes from."""

_truth_options = (
    image_column_option,
    click.option("--tag-column", metavar="NAME", help="Column of a table that holds the tags."),
    click.option(
        "--split",
        type=click.Choice(["validation", "train"]),
        default="validation",
        show_default=True,
        help="Of a training dataset, which images.",
    ),
    click.option(
        "--aliases",
        type=FILE,
        metavar="FILE",
        help="Names and what they are called instead, 'old,new' on each line, of the images and the model alike.",
    ),
)


def truth_options(function: Function) -> Function:
    """Give a command the options that say which images there are, and their tags."""
    for option in reversed(_truth_options):
        function = option(function)
    return function


@click.command("tagging", cls=SectionedCommand, short_help="Compare tags with known ones.")
@click.argument("dataset", type=FILE, metavar="DATASET")
@model_option
@click.option(
    "--scores",
    type=FILE,
    metavar="FOLDER",
    help="Take the scores that `annotary tag --save-scores` or this command kept there. Takes the place of --model.",
)
@click.option(
    "--save-scores",
    type=FILE,
    metavar="FOLDER",
    help="Keep the scores there; what it holds already is not worked out again.",
)
@truth_options
@click.option(
    "--min-support",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Leave tags that fewer images have out of the means over tags; micro rates are of all tags.",
)
@click.option(
    "--save-thresholds",
    type=FILE,
    metavar="FILE",
    help="With --fit: write the thresholds, for `annotary tag --tag-thresholds` (.csv), as the tags.csv of a model, or"
    " as the table to put into its card.toml (.toml). Of a file that is there nothing else is lost.",
)
@click.option(
    "--full-metrics",
    type=FILE,
    metavar="FILE",
    help="Write the counts of every tag there, as JoyTag's full-metrics.txt.",
)
@click.option("--report", type=FILE, metavar="FILE", help="Write a page with plots, as HTML.")
@output_option
@options_of(TaggingOptions, without=_NO_THRESHOLDS)
@options_of(FittingOptions)
@report_options
@measuring_options
def command(dataset: Path, **values: Any) -> None:
    """Compare the tags of a model with those that images of DATASET are known to have.

    DATASET is a folder that `annotary train dataset` wrote, of which the validation images count; a folder with a text
    of tags beside each image; or a table (.csv, .tsv, .jsonl, .parquet) with an image and its tags in each row. Tags
    are matched by name, and what only one side has is counted.
    """
    click.get_current_context().exit(_tagging(dataset, values))


def _tagging(dataset: Path, values: dict[str, Any]) -> int:
    from annotary.cli._tagging_page import write_page
    from annotary.cli._tagging_scores import Scoring, saved_first
    from annotary.cli._tagging_truth import read_truth
    from annotary.evaluation.tag_matching import match_tags
    from annotary.evaluation.tagging_streams import TaggingStream

    _check(values)
    fitting, choosing = made(FittingOptions, values), made(TaggingOptions, values)
    truth = read_truth(
        dataset,
        split=values["split"],
        image_column=values["image_column"],
        tag_column=values["tag_column"],
    )
    model = _model(values)
    _check_thresholds_of(model, values["save_thresholds"])
    match = match_tags(
        truth.tags, {model.id: model.vocabulary.names}, read_aliases(values["aliases"])
    )
    rule, thresholds = own_thresholds(model, choosing)
    own = match.models[0].thresholds(thresholds)
    stream = TaggingStream({rule: own}, halves=fitting.fit is not None)
    failures: list[Failure] = []
    models: Sequence[Live | Saved] = [model]
    if values["save_scores"] is not None:
        models, failures = saved_first(models, lambda _: values["save_scores"], truth, values)
    work, outputs = Scoring(models, truth, values), Outputs()
    for batch in work.batches():
        stream.update(
            match.models[0].scores(batch.scores[0]),
            match.targets(batch.tags),
            batch.numbers,
            match.known(truth.known(batch.numbers)),
        )
    work.add_failures(failures)
    if not stream.images:
        raise NothingToDo(f"no image of {dataset} has scores{first_failure(work.failures)}")
    tags = _tags(truth, model, match, values["min_support"])
    report = {
        "command": "evaluate tagging",
        "dataset": str(dataset),
        "model": model.id,
        "weights": model.weights,
        "images": stream.images,
        "images_without_scores": work.without_scores,
        **left_out(truth, {model.id: model.vocabulary.names}, match),
        **_measured(stream, tags, rule, own, fitting, model, match, values, outputs),
        "failures": [failure.to_json() for failure in work.failures],
    }
    if values["report"] is not None:
        with outputs.one():
            write_page(values["report"], report, stream.worst, truth, values)
    with outputs.one():
        give(report, values, lambda: _show(report))
    work.tell()
    outputs.finish()
    return 1 if work.failures else 0


def _check(values: Mapping[str, Any]) -> None:
    """Refuse what could not be measured or written at the end.

    Raises:
        UsageError: Options do not go together, or something else is where a file would go.
        OutputError: A file cannot be written there.
    """
    from annotary.cli._tagging_page import check_page
    from annotary.evaluation.tagging_files import read_full_metrics
    from annotary.evaluation.threshold_files import check_thresholds_file

    _check_options(values)
    check_places(
        {f"--{name.replace('_', '-')}": values[name] for name in _WRITTEN},
        {"--save-scores": values["save_scores"]},
    )
    check_replaceable(values["output"], "evaluate tagging")
    if values["report"] is not None:
        check_page(values["report"])
    if values["save_thresholds"] is not None:
        check_thresholds_file(values["save_thresholds"])
    metrics = values["full_metrics"]
    if metrics is not None and metrics.exists() and metrics.stat().st_size:
        read_full_metrics(metrics)  # nothing else is replaced


def _check_options(values: Mapping[str, Any]) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: It is so.
    """
    if values["scores"] is not None and values["model"] != DEFAULT_MODEL:
        raise UsageError("--scores takes the place of --model; give one of them")
    if values["scores"] is not None and values["save_scores"] is not None:
        raise UsageError("--scores are saved already, so leave out --save-scores")
    if values["fit"] is None:
        told = [*given(values, FittingOptions)]
        if values["save_thresholds"] is not None:
            told.append("--save-thresholds")
        if told:
            raise UsageError(f"{told[0]} is of thresholds that are fitted, which --fit asks for")
    target = values["save_thresholds"]
    if target is not None and target.suffix.lower() not in (".csv", ".toml"):
        raise UsageError(f"--save-thresholds {target} must end in .csv or .toml")
    if target is not None and target.suffix.lower() == ".toml" and values["per"] == "tag":
        raise UsageError("a card states no thresholds of single tags; --save-thresholds tags.csv")
    read = values["tag_thresholds"]
    if target is not None and read is not None and target.resolve() == read.resolve():
        raise UsageError(f"{target} is read by --tag-thresholds; --save-thresholds somewhere else")


def _check_thresholds_of(model: Live | Saved, path: Path | None) -> None:
    """Refuse to write a model's thresholds into the table of another."""
    from annotary.cards import TAGS_FILE
    from annotary.evaluation.threshold_files import check_same_tags

    if path is not None and path.name == TAGS_FILE:
        check_same_tags(path, model.vocabulary)


def _model(values: Mapping[str, Any]) -> Live | Saved:
    from annotary.cli._tagging_scores import Live, Saved

    if values["scores"] is not None:
        return Saved(values["scores"])
    return Live(values["model"], made(RuntimeOptions, values))


def own_thresholds(model: Live | Saved, options: TaggingOptions) -> tuple[str, Any]:
    """The thresholds by which a model is used, and their rule in words.

    Args:
        model: It.
        options: What the user has said.

    Returns:
        The rule, and float32[v].
    """
    from annotary.tasks.tag_selection import DEFAULT_PRESET, DEFAULT_THRESHOLD, thresholds_of

    found = thresholds_of(model.vocabulary, options, model.id)
    if options.threshold is not None:
        rule = f"threshold {options.threshold:g}"
    elif options.preset or model.vocabulary.thresholds:
        rule = f"preset {options.preset or DEFAULT_PRESET}"
        if len(set(found.tolist())) == 1:
            rule += f", threshold {found[0]:g}"
    else:
        rule = f"threshold {DEFAULT_THRESHOLD:g}, as nothing else is known"
    for one in options.category_threshold:
        rule += f", {one}"
    if options.tag_thresholds is not None:
        rule += f", {options.tag_thresholds.name}"
    return rule, found


def read_aliases(path: Path | None) -> dict[str, str]:
    """The names of a file and what they are called instead; none without a file."""
    from annotary.tasks.tag_rules import read_pairs

    return {} if path is None else dict(read_pairs(path))


def left_out(
    truth: Truth, vocabularies: Mapping[str, Sequence[str]], match: TagMatch
) -> dict[str, Any]:
    """How many tags are measured, and which are left out, as not all have them."""
    unknown = [truth.tags[int(place)] for place in match.dataset.unmatched]
    return {
        "tags": len(match.names),
        "tags_without_model": {"count": len(unknown), "names": unknown[:MOST_LISTED]},
        "tags_without_truth": {
            name: {
                "count": len(columns.unmatched),
                "names": [names[int(place)] for place in columns.unmatched[:MOST_LISTED]],
            }
            for (name, names), columns in zip(vocabularies.items(), match.models, strict=True)
        },
    }


def _tags(truth: Truth, model: Live | Saved, match: TagMatch, least: int) -> Tags:
    from annotary.evaluation.tagging_results import Tags

    places, own = match.dataset.first, match.models[0].first
    categories = tuple(
        truth.categories[int(at)] or model.vocabulary.categories[int(of_model)]
        for at, of_model in zip(places, own, strict=True)
    )
    trained = None if truth.trained is None else truth.trained[places]
    return Tags(match.names, categories, own, trained, least)


def _measured(
    stream: TaggingStream,
    tags: Tags,
    rule: str,
    own: Any,
    fitting: FittingOptions,
    model: Live | Saved,
    match: TagMatch,
    values: Mapping[str, Any],
    outputs: Outputs,
) -> dict[str, Any]:
    """All numbers of a report; files that were asked for are written."""
    from annotary.evaluation import tagging_results as results
    from annotary.evaluation.tagging_streams import BINS

    counts = stream.counts[rule]
    chosen = results.counted(counts, tags)
    everything = np.ones_like(chosen)
    precision, is_exact = stream.average_precision()
    rules = [{"rule": rule, "threshold": _single(own), **results.means(counts, chosen, everything)}]
    shown, thresholds = counts, own
    if fitting.fit is not None:
        fitted, shown, told = _fit(stream, tags, fitting)
        rules += told
        thresholds = fitted.values
        with outputs.one():
            _save_thresholds(fitted, model, match, values["save_thresholds"])
    if values["full_metrics"] is not None:
        with outputs.one():
            _save_full_metrics(shown, tags, values["full_metrics"])
    return {
        "minimum_support": tags.minimum_support,
        "tags_in_means": int(chosen.sum()),
        "rules": rules,
        "map": results.mean_precision(precision, stream.histograms, chosen),
        "average_precision": "exact" if is_exact else f"of scores in {BINS:,} bins",
        "detail_of": rules[0]["rule"] if fitting.fit is None else rules[1]["rule"],
        "slices": results.slices(shown, precision, tags),
        "frequency_of": "images here" if tags.trained is None else "training images",
        "calibration": results.calibration(stream.histograms),
        "curve": results.precision_recall(stream.histograms, chosen, everything),
        "per_tag": results.per_tag(shown, precision, tags, thresholds),
    }


def _fit(
    stream: TaggingStream, tags: Tags, fitting: FittingOptions
) -> tuple[FittedThresholds, TagCounts, list[dict[str, Any]]]:
    """Fitted thresholds, their counts, and what is told of them, on these images and on others."""
    from annotary.evaluation import tagging_results as results
    from annotary.evaluation.tagging_thresholds import fit, held_out

    if not stream.histograms.support.any():
        raise UsageError("--fit needs images with tags that the model knows; there are none")
    fitted = fit(stream.histograms, fitting, tags.categories, stream.halves)
    counts = stream.histograms.counts_at(fitted.places)
    chosen = results.counted(counts, tags)
    everything = np.ones_like(chosen)
    single = fitted.pooled if fitting.per == "all" else None
    found = [
        {"rule": fitted.told, "threshold": single, **results.means(counts, chosen, everything)}
    ]
    others = held_out(fitting, tags.categories, stream.halves, fitted.shrinkage)
    if others is not None:
        name = "the same, each half of the images judged by the other's"
        found.append({"rule": name, "threshold": None, **results.means(others, chosen, everything)})
    return fitted, counts, found


def _single(thresholds: Any) -> float | None:
    """The threshold that all tags have; None where they differ."""
    return float(np.float64(str(thresholds[0]))) if len(set(thresholds.tolist())) == 1 else None


def _save_thresholds(
    fitted: FittedThresholds, model: Live | Saved, match: TagMatch, path: Path | None
) -> None:
    from annotary.evaluation.tagging_thresholds import card_text, tags_text, thresholds_text
    from annotary.sinks import write_atomically

    if path is None:
        return
    places = match.models[0].first
    if path.suffix.lower() == ".toml":
        text = card_text(fitted)
    elif path.name == "tags.csv":
        text = tags_text(model.vocabulary, places, fitted)
    else:
        text = thresholds_text(
            [model.vocabulary.names[int(place)] for place in places], fitted.values
        )
    write_atomically(path, text)


def _save_full_metrics(counts: TagCounts, tags: Tags, path: Path) -> None:
    from annotary.evaluation.tagging_files import full_metrics_text, records_of
    from annotary.sinks import write_atomically

    trained = counts.support * 0 if tags.trained is None else tags.trained
    records = records_of(counts, tags.names, tags.indices.tolist(), trained.tolist())
    write_atomically(path, full_metrics_text(records))


def _show(report: Mapping[str, Any]) -> None:
    from annotary.evaluation.tagging_report import told_rule

    told = f"{report['images']:,} images, {report['tags']:,} tags, {report['model']}"
    click.echo(one_line(f"{report['dataset']}: {told}") + "\n")
    rows: list[Sequence[str]] = [("rule", "mean", "precision", "recall", "F1")]
    for rule in report["rules"]:
        for place, kind in enumerate(("macro", "micro", "weighted")):
            shares = [percent(rule[kind][key]) for key in ("precision", "recall", "f1")]
            name = "" if place else told_rule(rule)
            rows.append((name, kind, *shares))
    click.echo(table(rows, numbers=[2, 3, 4]))
    found = report["map"]
    click.echo(
        f"\nmAP {percent(found['macro'])} macro, {percent(found['micro'])} micro,"
        f" {percent(found['weighted'])} weighted ({report['average_precision']});"
        f" calibration error {percent(report['calibration']['error'])}"
    )
    for name, told_of in (("category", "category"), ("frequency", report["frequency_of"])):
        slices = report["slices"][name]
        if len(slices) > 1:
            head = (told_of, "tags", "macro F1", "micro F1", "weighted F1", "mAP")
            lines = [
                (
                    one["name"],
                    f"{one['tags']:,}",
                    *(percent(one[kind]["f1"]) for kind in ("macro", "micro", "weighted")),
                    percent(one["map"]),
                )
                for one in slices[:MOST_SHOWN]
            ]
            click.echo("\n" + table([head, *lines], numbers=range(1, 6)))
    _show_tags(report)
    _tell_left_out(report)


def _show_tags(report: Mapping[str, Any]) -> None:
    seen = [one for one in report["per_tag"] if one["support"]]
    worst = sorted(seen, key=lambda one: (one["f1"], -one["support"]))[:MOST_SHOWN]
    head = ("worst tags", "images", "precision", "recall", "F1", "AP")
    rows = [
        (
            one_line(one["tag"]),
            f"{one['support']:,}",
            *(percent(one[key]) for key in ("precision", "recall", "f1", "ap")),
        )
        for one in worst
    ]
    click.echo("\n" + table([head, *rows], numbers=range(1, 6)))


def _tell_left_out(report: Mapping[str, Any]) -> None:
    unknown = report["tags_without_model"]["count"]
    if unknown:
        tell(f"tags of the images that the model does not know, which are left out: {unknown:,}")
    for name, one in report["tags_without_truth"].items():
        if one["count"]:
            tell(f"tags of {name} that no image is known to have: {one['count']:,}")
    bare = report["tags"] - report["tags_in_means"]
    if bare:
        least = report["minimum_support"]
        what = "that no image has" if least == 1 else f"of fewer than {least} images"
        tell(f"tags {what}, which are left out of the means: {bare:,}")
