"""`annotary models`: the models that are known by name."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command("models", short_help="List the models.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List the models that are known by name, with licence, size and what they are."""
    from annotary import weights
    from annotary.cards import read_card

    rows: list[dict[str, Any]] = [
        {
            "name": card.name,
            "version": card.version,
            "licence": card.licence,
            "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
            "description": card.description,
        }
        for folder in weights.shipped().values()
        for card in (read_card(folder),)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f} MB, in the package"
        click.echo(
            f"{row['name']} {row['version']}  {row['licence']}  {size}\n  {row['description']}"
        )
