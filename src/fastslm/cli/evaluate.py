"""`fastslm evaluate SUITE`: figures that say how they were got."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fastslm.cli.files import load_quietly, progress_bar
from fastslm.cli.options import Device, DType, Model, Reader
from fastslm.errors import OptionError

app = typer.Typer(no_args_is_help=True, help="Measure a model: asr.")


@app.callback()
def root() -> None:
    """Measure a model."""


@app.command()
def asr(
    manifest: Annotated[Path, typer.Option(help="JSONL with one clip a line, each with its text.")],
    model: Model = "fastslm-tiny",
    system: Annotated[
        str, typer.Option(help="fastslm, or whisper: Whisper tiny.en with its own decoder, for comparison.")
    ] = "fastslm",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many clips.", show_default=False)] = None,
    reader: Reader = "auto",
    predictions: Annotated[
        Path | None, typer.Option(help="Write every reference and hypothesis there, as JSONL.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Word error rate of transcripts, over all clips of a manifest."""
    from fastslm.evaluation.suites.asr import evaluate_asr, read_clips, summary, system_named

    clips = read_clips(manifest, limit)
    if system_named(system) == "whisper":
        if reader != "auto" or model != "fastslm-tiny":
            raise OptionError("--model and --reader belong to the system fastslm: leave them out.")
        from fastslm.evaluation.baselines import load_whisper

        heard = load_whisper(device, dtype)
    else:
        from fastslm.evaluation.suites.asr import FastSLMSystem

        heard = FastSLMSystem(load_quietly(model, device, dtype), reader)
    with progress_bar(manifest.name) as show:
        count = len(clips)
        report = evaluate_asr(
            heard, clips, manifest, predictions, lambda done: show(done, count, f"{done} of {count} clips")
        )
    typer.echo(json.dumps(report, ensure_ascii=False) if as_json else summary(report))
