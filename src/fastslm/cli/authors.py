"""`fastslm import-authors` and `fastslm verify-parity`: the authors' checkpoint, and whether ours computes the same."""

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from fastslm.cli.printing import print_json, print_text, tell

app = typer.Typer()


@app.command("import-authors")
def import_authors(
    checkpoint: Annotated[Path, typer.Argument(help="The state dict of the authors' code, as torch.save wrote it.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it loads with from_pretrained.")],
    llm: Annotated[
        str, typer.Option(help="Folder or Hub id with the language model's config.json and tokenizer; no weights.")
    ] = "Qwen/Qwen3-4B",
    lora_alpha: Annotated[int, typer.Option(min=1, help="LoRA's alpha, which no tensor tells.")] = 64,
) -> None:
    """Turn a checkpoint of the authors' code into a folder that FastSLM loads. Sizes are read off the tensors."""
    from fastslm.model.authors import import_authors as run

    _without_bars()
    config = run(checkpoint, out, llm, lora_alpha)
    former = config.hfq_config
    tell(
        f"{out}: width {former.hidden_size}, stage tokens {former.stage_tokens}, {former.final_tokens} tokens "
        f"a window, {former.detail_blocks} detail blocks, LoRA rank {config.lora_rank}, alpha {config.lora_alpha}"
    )
    print_text(out)


@app.command("verify-parity")
def verify_parity(
    case: Annotated[Path, typer.Argument(help="Directory of one case; waveforms.safetensors lies in it or beside it.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The case's checkpoint, where the case itself has only a recipe of it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Compare every recorded tensor of a case with what FastSLM computes. Exit status 0: all agree; 1: not all."""
    from fastslm.model.parity import verify_case

    _without_bars()
    comparisons = []
    for comparison in verify_case(case, checkpoint):
        comparisons.append(comparison)
        if not as_json:
            verdict = "ok  " if comparison.agrees else "DIFF"
            note = f"  {comparison.note}" if comparison.note else ""
            print_text(f"{verdict}  {comparison.difference:9.2e}  {comparison.name}{note}")
    differing = [comparison for comparison in comparisons if not comparison.agrees]
    agree = not differing and bool(comparisons)
    if as_json:
        # Infinite where nothing was computed, or not a number: JSON has no word for either.
        rows = [
            {**asdict(comparison), "difference": comparison.difference if isfinite(comparison.difference) else None}
            for comparison in comparisons
        ]
        print_json({"case": str(case), "agrees": agree, "comparisons": rows}, indent=2)
    if not comparisons:
        tell(f"{case} records nothing to compare: give the directory of a parity case.")
    elif differing:
        worst = max(differing, key=lambda comparison: comparison.difference)
        tell(f"{len(differing)} of {len(comparisons)} differ, {worst.name} the most: this is not parity.")
    else:
        largest = max(comparison.difference for comparison in comparisons)
        tell(f"All {len(comparisons)} agree, the largest difference is {largest:.2e}.")
    raise typer.Exit(0 if agree else 1)


def _without_bars() -> None:
    """Without what transformers shows while it loads, which takes a moment only."""
    from transformers.utils import logging

    logging.disable_progress_bar()
