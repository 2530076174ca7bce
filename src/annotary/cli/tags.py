"""`annotary tags`: what became of tags: count them over a run, or choose them again from saved scores."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import click

from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import Writing, writing_options
from annotary.errors import UsageError
from annotary.sinks import SinkOptions, format_named, format_of, formats, read_tags
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions


@click.group("tags", short_help="Count tags, or choose them again from saved scores.")
def command() -> None:
    """Count the tags of a run, or choose tags again from saved scores without running the network."""


@command.command("stats", short_help="Count the tags of a run.")
@click.argument("output", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--format",
    "form",
    metavar="NAME",
    help=f"What OUT was written as ({', '.join(formats())}); needed where its suffix does not tell.",
)
@click.option("--separator", default=", ", show_default=True, help="What stands between two tags.")
@click.option("--top", type=click.IntRange(min=1), help="Show only the most frequent ones.")
@click.option(
    "--min-count", type=click.IntRange(min=1), default=1, help="Leave out tags of fewer images."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(
    output: Path,
    form: str | None,
    separator: str,
    top: int | None,
    min_count: int,
    as_json: bool,
) -> None:
    """Count how many images of OUT have each tag: a file or a folder that `annotary tag` wrote."""
    from annotary.cli._output import one_line

    form = form or (_folder_format(output) if output.is_dir() else format_of(output))
    if not output.exists():
        raise UsageError(f"no such file or folder: {str(output)!r}")
    counts: Counter[str] = Counter()
    sums: defaultdict[str, float] = defaultdict(float)
    scored: Counter[str] = Counter()
    images = empty = 0
    for _, tags in read_tags(form, output, SinkOptions(separator=separator)):
        images += 1
        empty += not tags
        counts.update({name for name, _ in tags})
        for name, score in tags:
            if score is not None:
                sums[name] += score
                scored[name] += 1
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    chosen = [(name, count) for name, count in ranked if count >= min_count][:top]
    means = {name: sums[name] / scored[name] for name in scored}
    total = sum(counts.values())
    if as_json:
        rows = [
            {"name": name, "images": count, "share": count / images, "mean_score": means.get(name)}
            for name, count in chosen
        ]
        summary = {"images": images, "without_tags": empty, "different_tags": len(counts)}
        click.echo(json.dumps({**summary, "given_tags": total, "tags": rows}, ensure_ascii=False))
        return
    click.echo(
        f"{images:,} images, {empty:,} without tags; {len(counts):,} different tags,"
        f" {total / max(images, 1):.1f} an image"
    )
    width = max((len(f"{count:,}") for _, count in chosen), default=1)
    for name, count in chosen:
        mean = f"  {means[name]:.2f}" if name in means else ""
        click.echo(f"{count:>{width},}  {count / images:>6.1%}{mean}  {one_line(name)}")


@command.command("apply", cls=SectionedCommand, short_help="Choose tags again from saved scores.")
@click.argument("scores", type=click.Path(path_type=Path), metavar="SCORES")
@options_of(TaggingOptions, TagRules)
@writing_options
def apply(scores: Path, **values: Any) -> None:
    """Choose tags from SCORES, the folder of `annotary tag --save-scores`, with other thresholds and rules.

    No network runs, and the images are not read. The options are those of `annotary tag`.
    """
    click.get_current_context().exit(_apply(scores, values))


def _apply(folder: Path, values: dict[str, Any]) -> int:
    from annotary.pipeline import Reapply, SavedScores
    from annotary.sources import Reader, SourceOptions
    from annotary.tasks.tag_selection import TagSelector

    writing = Writing(values, [])
    options, rules = made(TaggingOptions, values), made(TagRules, values)
    saved = SavedScores(folder)
    selector = TagSelector(saved.vocabulary, options, rules, saved.source)
    settings = {"command": "tags apply", **saved.settings, **selector.settings()}
    output = writing.open(settings)
    with Reader(SourceOptions()) as reader, Reapply(saved, selector, output, reader) as work:
        return writing.watch(work, output, ("choosing tags", "tagged"))


def _folder_format(folder: Path) -> str:
    """The format of a folder of sidecars, by the suffix that most of its files have.

    Raises:
        UsageError: It holds none, or its suffix belongs to more than one format.
    """
    if (folder / "scores.json").is_file():
        raise UsageError(f"{folder} holds scores; `annotary tags apply` chooses tags from them")
    if (folder / "data.yaml").is_file() and (folder / "labels").is_dir():
        return "yolo"
    sidecars = {
        ".txt": "txt",
        ".caption": "caption",
        ".xmp": "xmp",
        ".json": "json-files",
        ".xml": "voc",
    }
    found = Counter(
        sidecars[path.suffix]
        for path in folder.rglob("*")
        if path.suffix in sidecars and path.is_file() and not path.name.endswith(".run.json")
    )
    known = [form for form, _ in found.most_common() if form in formats()]
    if not known:
        listed = ", ".join(name for name in formats() if not format_named(name).is_one_file)
        raise UsageError(f"no sidecars in {folder}; say --format ({listed})")
    return known[0]
