"""`annotary train curves`: draws the losses and measurements of runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("curves", short_help="Draw the losses and measurements of runs.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The picture, an SVG file. When nothing is said the table alone is printed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def command(runs: tuple[Path, ...], output: Path | None, *, as_json: bool) -> None:
    """Compare runs of annotary train tagger, finished or not: a table, and a picture of their curves.

    RUN is the output folder of a run; up to five share a picture.
    """
    from annotary.cli._output import tell
    from annotary.sinks import write_atomically
    from annotary.training.curves import (
        check_picture,
        curves_json,
        curves_picture,
        curves_table,
        read_curves,
    )

    read = [read_curves(run) for run in runs]
    if output is not None:
        check_picture(output)
        write_atomically(output, curves_picture(read))
        tell(f"see {output}")
    if as_json:
        click.echo(curves_json(read))
        return
    wide = max(len("run"), *(len(run.name) for run in read))
    click.echo(
        f"{'run':<{wide}}  {'images seen':>11}  {'loss':>7}  {'mAP':>6}  {'best':>6}  macro F1"
    )
    for name, seen, values in curves_table(read):
        numbers = [
            f"{values[key]:.{digits}f}" if key in values else "-"
            for key, digits in (("loss", 4), ("map", 4), ("best_map", 4), ("macro_f1", 4))
        ]
        loss, last, best, f1 = numbers
        click.echo(f"{name:<{wide}}  {seen:>11,}  {loss:>7}  {last:>6}  {best:>6}  {f1:>8}")
