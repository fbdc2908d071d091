"""Options of the four tasks, beyond those that all commands share."""

from pathlib import Path
from typing import Annotated

import typer

from fastslm.cli.options import path_named

Method = Annotated[
    str, typer.Option(help="window, each alone; context, each with those before it; whole, all in one prompt.")
]
ContextWindows = Annotated[
    int | None, typer.Option(help="Windows before it, by the method context; 2 by default.", show_default=False)
]
Repetition = Annotated[
    str, typer.Option(help="A text that loops is written again and at last cut (retry), cut at once (cut), or kept.")
]
NoSpeech = Annotated[
    str | None,
    typer.Option(help="Sound without speech: skip it, or read it as well; by default skip.", show_default=False),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="Text that might stand before the transcript, whose names, words and style it then takes up.",
        show_default=False,
    ),
]
Hotwords = Annotated[
    str | None,
    typer.Option(
        help="Words and names that may be said, as they are spelled: 'Anneliese, Zürich'.", show_default=False
    ),
]
AnswerMethod = Annotated[
    str, typer.Option("--method", help="whole, one prompt; map_reduce, span by span; auto, the first where it fits.")
]
SpanSeconds = Annotated[
    float | None, typer.Option(help="Of a span at most; by default as much as fits.", show_default=False)
]
RopeScaling = Annotated[
    float | None,
    typer.Option(help="Stretch the language model's positions by this factor (YaRN).", show_default=False),
]
PrefixFile = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        parser=path_named,
        help="Keep what the language model made of FILE there: a later question is fast.",
        show_default=False,
    ),
]
Together = Annotated[bool, typer.Option("--together", help="Take all files as one, instead of each alone.")]
