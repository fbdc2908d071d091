"""`fastslm train`: a recipe, run to its end, or packed for another machine."""

from pathlib import Path
from typing import Annotated

import typer

from fastslm.cli.printing import print_text
from fastslm.errors import OptionError

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[
        Path,
        typer.Argument(help="A YAML recipe, such as recipes/tiny/stage1.yaml, or the folder of a packed run."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, for instance data.variants=1."),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Train nothing: write all that the run needs into this new folder, for a machine without network, "
            "audio or caches, where `fastslm train FOLDER` trains it.",
        ),
    ] = None,
) -> None:
    """Train a model by a recipe. The same command goes on where a stopped run was.

    Several processes train as one: torchrun --nproc-per-node 2 -m fastslm train RECIPE.
    """
    if recipe.is_dir():
        if pack is not None:
            raise OptionError(f"--pack: {recipe} is a folder, and what is packed is a recipe; copy the folder instead.")
        from fastslm.training.packed import load_packed

        checked = load_packed(recipe, overrides or [])
    else:
        from fastslm.training.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        if pack is not None:
            from fastslm.training.pack import pack_run

            print_text(pack_run(checked, pack))
            return
    import psutil

    from fastslm.training.trainer import Trainer

    trainer = Trainer(checked, started=psutil.Process().create_time())
    folder = trainer.run()
    if trainer.processes.main:
        print_text(folder)
    trainer.processes.end()
