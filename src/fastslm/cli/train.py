"""`fastslm train`: a recipe, run to its end."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, such as recipes/tiny/stage1.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, for instance data.variants=1."),
    ] = None,
) -> None:
    """Train a model by a recipe. The same command goes on where a stopped run was.

    Several processes train as one: torchrun --nproc-per-node 2 -m fastslm train RECIPE.
    """
    from fastslm.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    from fastslm.training.trainer import Trainer

    trainer = Trainer(checked)
    folder = trainer.run()
    if trainer.processes.main:
        typer.echo(folder)
    trainer.processes.end()
