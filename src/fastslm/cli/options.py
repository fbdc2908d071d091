"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from fastslm.errors import OptionError


def path_named(text: str | Path) -> Path:
    """A path as it was written, or a default; an empty one, as of a variable not set, would be the current folder."""
    if not str(text).strip():
        raise OptionError("A path is empty, the name of a file or folder is needed: give it, or leave it out.")
    return Path(text)


def refuse_overwriting(out: Path, read: list[Path]) -> None:
    """Raise if a result would take the place of what it is made of."""
    if any(path.resolve() == out.resolve() for path in read):
        raise OptionError(f"{out} is read and would be written over: choose another name for what is written.")


Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE", parser=path_named, help="Recordings, or memories of `fastslm encode`.", show_default=False
    ),
]
Model = Annotated[str, typer.Option(help="fastslm-tiny, a checkpoint's folder, or owner/name on the Hugging Face Hub.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, … ; auto is CUDA where there is some.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16, float16; auto fits the device.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line for each FILE.")]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        metavar="FOLDER",
        parser=path_named,
        help="Write one file for each FILE there, instead of standard output.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", "-f", help="Replace results that are there already, which is refused else.")
]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out each FILE whose result is there, such as after a stop.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(help="Tokens that the language model may write; by default enough.", show_default=False),
]
Decoder = Annotated[
    str, typer.Option(help="What writes the transcript: ctc, whisper, llm, or auto, the best of them in this model.")
]
# What --decoder was called before.
Reader = Annotated[str | None, typer.Option("--reader", hidden=True)]


def named_decoder(decoder: str, reader: str | None) -> str:
    """The decoder that was asked for, by either name of the option."""
    if reader is not None and decoder not in ("auto", reader):
        raise OptionError("--reader is the old name of --decoder, and both were given: leave --reader out.")
    return reader or decoder


Cuts = Annotated[
    str | None,
    typer.Option(
        help="Where windows end: fixed, every 30 s, or quiet, in a pause before; by default as the model needs.",
        show_default=False,
    ),
]
Track = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Number of the audio track in a file that has several, from 1 on; by default the one FFmpeg thinks best.",
        show_default=False,
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Read from this second on, or H:MM:SS; times in the result stay those of the whole file.",
        show_default=False,
    ),
]
Duration = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Read so many seconds, or H:MM:SS; by default to the end.", show_default=False),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict/--partial",
        help="Refuse a recording that breaks off before its end, or read it as far as it goes and mark the result.",
    ),
]
