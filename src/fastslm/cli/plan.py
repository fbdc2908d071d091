"""`fastslm plan`: what recordings will take on this machine, before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import typer

from fastslm.cli.files import went_well
from fastslm.cli.options import AsJson, Cuts, Device, DType, Files, Model, Partial

app = typer.Typer()


@app.command()
def plan(
    files: Files,
    model: Model = "fastslm-tiny",
    cuts: Cuts = None,
    partial: Partial = False,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say what recordings will take: windows, tokens, memory, and whether one prompt holds them.

    Neither is the model loaded nor a recording decoded; whether one is cut short is looked at as every task does.
    """
    from fastslm.loading import checkpoint_folder, choose_device, choose_dtype, choose_encoder_dtype
    from fastslm.longform.cuts import check_cuts
    from fastslm.longform.plan import empty_model
    from fastslm.longform.plan import plan as plan_of
    from fastslm.model.products import PRODUCTS_REASON, best_kernels
    from fastslm.speech import own_cuts

    chosen_device, device_reason = choose_device(device)
    chosen_dtype, dtype_reason = choose_dtype(dtype, chosen_device)
    empty = empty_model(checkpoint_folder(model))
    chosen_cuts: Any = cuts or own_cuts(empty)
    check_cuts(chosen_cuts, empty.config.mel_mode)
    name = str(chosen_dtype).removeprefix("torch.")
    reasons = (f"{chosen_device}{device_reason}", f"{name}{dtype_reason}")
    encoder_dtype, encoder_reason = choose_encoder_dtype(dtype, chosen_device)
    kernels = best_kernels(chosen_device, encoder_dtype or chosen_dtype)
    if kernels == "products":
        encoder_reason += f"; {PRODUCTS_REASON}"
    if encoder_dtype is not None:
        own = "the encoder" if empty.reader is None else "Whisper's parts"
        reasons += (f"{own} in {str(encoder_dtype).removeprefix('torch.')} ({encoder_reason})",)

    def tell(file: Path) -> None:
        seconds, windows = _length(file, partial, cuts)
        found = plan_of(
            empty,
            seconds,
            windows=windows,
            dtype=chosen_dtype,
            device=str(chosen_device),
            cuts=chosen_cuts,
            encoder_dtype=encoder_dtype,
            kernels=kernels,
            reasons=reasons,
        )
        if as_json:
            typer.echo(json.dumps({"file": str(file), "model": model, **found.as_dict()}))
        else:
            typer.echo(f"==> {file} <==\n{found.table()}" if len(files) > 1 else found.table())

    told: set[str] = set()
    if sum(went_well(lambda file=file: tell(file), told) for file in files) < len(files):
        raise typer.Exit(2)


def _length(file: Path, partial: bool, cuts: str | None) -> tuple[float | None, int | None]:
    """Its seconds, `None` where it does not say, and of a memory its windows.

    Of a recording that is cut short, if it is to be taken, the seconds are those that are there.
    """
    from fastslm.audio import probe_duration, require_whole
    from fastslm.errors import CutShortError
    from fastslm.longform.cuts import refuse_cuts_of_memory
    from fastslm.longform.memory import SUFFIX, SpeechMemory

    if file.suffix.lower() == SUFFIX:
        refuse_cuts_of_memory(cuts, str(file))
        memory = SpeechMemory.load(file)
        return memory.duration, len(memory.tokens)
    try:
        require_whole(file)
    except CutShortError as error:
        if not partial or error.seconds is None:
            raise
        return error.seconds, None
    return probe_duration(file), None
