"""`fastslm train`: a recipe, run to its end, or what it would need."""

from pathlib import Path
from typing import Annotated

import typer

from fastslm.cli.printing import print_text

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, such as recipes/tiny/stage1.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, for instance optimizer.rates.lora=0.0001."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: say what the run would need. Fetches nothing.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="GPUs of the dry run.")] = 1,
    sharded: Annotated[bool, typer.Option("--sharded", help="The dry run shares weights out (FSDP).")] = False,
    tflops: Annotated[float, typer.Option(min=0.001, help="TFLOP/s that one GPU of the dry run reaches.")] = 200.0,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run's figures as JSON.")] = False,
) -> None:
    """Train a model by a recipe. The same command goes on where a stopped run was.

    Several processes train as one: accelerate launch -m fastslm train RECIPE.
    """
    from fastslm.training.recipe_file import load_recipe

    checked = load_recipe(recipe, overrides or [], look_for_files=not dry_run)
    if dry_run:
        from fastslm.training.dry_run import dry_run as estimate

        found = estimate(checked, processes=processes, sharded=sharded, tflops=tflops)
        print_text(found.as_json() if as_json else found.as_text())
        return
    from accelerate import PartialState

    from fastslm.training.train import train as run

    folder = run(checked)
    if PartialState().is_main_process:
        print_text(folder)
