"""`fastslm plan`: what recordings will take on this machine, before anything is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fastslm.cli.files import went_well
from fastslm.cli.options import AsJson, Cuts, Device, DType, Duration, Files, Model, Start, Track
from fastslm.cli.printing import as_unicode, print_json, print_text, shown

if TYPE_CHECKING:
    from fastslm.audio.part import Part

app = typer.Typer()


@app.command()
def plan(
    files: Files,
    model: Model = "fastslm-tiny",
    cuts: Cuts = None,
    track: Track = None,
    start: Start = None,
    duration: Duration = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say what recordings will take: windows, tokens, memory, and whether one prompt holds them.

    Neither is the model loaded nor a recording decoded: how long it is its container says.
    """
    from fastslm.audio.part import Part
    from fastslm.loading import checkpoint_folder, choose_device, choose_dtype, choose_encoder_dtype
    from fastslm.longform.cuts import check_cuts
    from fastslm.longform.plan import empty_model
    from fastslm.longform.plan import plan as plan_of
    from fastslm.model.products import PRODUCTS_REASON, best_kernels
    from fastslm.speech import own_cuts

    part = Part.of(track, start, duration)
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
        own = "the encoder" if empty.whisper_decoder is None else "Whisper's parts"
        reasons += (f"{own} in {str(encoder_dtype).removeprefix('torch.')} ({encoder_reason})",)

    def tell(file: Path) -> None:
        seconds, windows = _length(file, part, cuts)
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
            print_json({"file": as_unicode(file), "model": model, **found.as_dict()})
        else:
            print_text(f"==> {shown(file)} <==\n{found.table()}" if len(files) > 1 else found.table())

    told: set[str] = set()
    if sum(went_well(lambda file=file: tell(file), told) for file in files) < len(files):
        raise typer.Exit(2)


def _length(file: Path, part: "Part", cuts: str | None) -> tuple[float | None, int | None]:
    """Its seconds, `None` where it does not say, and of a memory its windows."""
    from fastslm.audio import probe_duration
    from fastslm.longform.cuts import refuse_cuts_of_memory
    from fastslm.longform.memory import SUFFIX, SpeechMemory

    if file.suffix.lower() == SUFFIX:
        refuse_cuts_of_memory(cuts, str(file))
        part.refuse_of_memory(str(file))
        memory = SpeechMemory.load(file)
        return memory.duration, len(memory.tokens)
    return probe_duration(file, part=part), None
