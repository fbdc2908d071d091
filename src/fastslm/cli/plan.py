"""`fastslm plan`: what recordings will take on this machine, before anything is loaded."""

import json

import typer

from fastslm.cli.options import AsJson, Cuts, Device, DType, Files, Model

app = typer.Typer()


@app.command()
def plan(
    files: Files,
    model: Model = "fastslm-tiny",
    cuts: Cuts = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say what recordings will take: windows, tokens, memory, and whether one prompt holds them.

    Neither is the model loaded nor a recording decoded.
    """
    from fastslm.audio import probe_duration
    from fastslm.loading import checkpoint_folder, choose_device, choose_dtype, choose_encoder_dtype
    from fastslm.longform.cuts import check_cuts
    from fastslm.longform.memory import SUFFIX, SpeechMemory
    from fastslm.longform.plan import empty_model
    from fastslm.longform.plan import plan as plan_of

    chosen_device, device_reason = choose_device(device)
    chosen_dtype, dtype_reason = choose_dtype(dtype, chosen_device)
    empty = empty_model(checkpoint_folder(model))
    check_cuts(cuts or "fixed", empty.config.mel_mode)
    name = str(chosen_dtype).removeprefix("torch.")
    reasons = (f"{chosen_device}{device_reason}", f"{name}{dtype_reason}")
    encoder_dtype, encoder_reason = choose_encoder_dtype(dtype, chosen_device)
    if encoder_dtype is not None:
        reasons += (f"the encoder in {str(encoder_dtype).removeprefix('torch.')} ({encoder_reason})",)
    for file in files:
        is_memory = file.suffix.lower() == SUFFIX
        seconds = SpeechMemory.load(file).duration if is_memory else probe_duration(file)
        found = plan_of(
            empty,
            seconds,
            dtype=chosen_dtype,
            device=str(chosen_device),
            cuts=cuts or "fixed",  # type: ignore[arg-type]
            encoder_dtype=encoder_dtype,
            reasons=reasons,
        )
        if as_json:
            typer.echo(json.dumps({"file": str(file), "model": model, **found.as_dict()}))
        else:
            typer.echo(f"==> {file} <==\n{found.table()}" if len(files) > 1 else found.table())
