"""One command over several files: each is read whatever becomes of the others, and progress is shown for each."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from fastslm.cli.outputs import Outputs
from fastslm.cli.printing import print_json, print_text, say, shown
from fastslm.errors import FastSLMError

if TYPE_CHECKING:
    from fastslm.audio.part import Part
    from fastslm.longform.encoder import OnProgress
    from fastslm.model.modeling import FastSLMForConditionalGeneration
    from fastslm.speech import FastSLM

Result = TypeVar("Result")
LINE_SECONDS = 30


def for_each_file(
    files: list[Path],
    model: str,
    device: str,
    dtype: str,
    work: Callable[["FastSLM", Path, "OnProgress"], Result],
    hand_over: Callable[["FastSLM", Path, Result], None],
    *,
    check: Callable[["FastSLMForConditionalGeneration"], object] | None = None,
    part: "Part | None" = None,
    cuts: str | None = None,
    together: Sequence[Path] = (),
    outputs: Outputs | None = None,
) -> None:
    """`work` on each file, then `hand_over` what it gave. A file at fault is said, and the others go on.

    Files are looked at first, and options checked, so that what cannot be done costs no loading of the model. Results
    are handed over as they come, each after its progress was cleared from the terminal.

    Args:
        check: raises what is wrong with the options, by a model without its weights; `None` if none were given.
        part: of each recording that is read.
        cuts: that were chosen, which a memory cannot have.
        together: the files that are taken with the first, it among them.
        outputs: where results go; a file whose result is there and kept is not read.

    Raises:
        typer.Exit: with status 2, at the end, if a file was at fault.
        OptionError: from `check`.
    """
    from fastslm.longform.results import clock

    told: set[str] = set()
    left = set(outputs.left_out()) if outputs else set()
    files = [file for file in files if file not in left]

    def look(file: Path) -> None:
        for own in together or [file]:
            _look_at(own, part, cuts)

    readable = [file for file in files if went_well(lambda file=file: look(file), told)]
    done = 0
    if readable:
        if check is not None:
            from fastslm.loading import unloaded

            check(unloaded(model))
        loaded = load_quietly(model, device, dtype)
        for file in readable:

            def both(file: Path = file) -> None:
                if outputs and not outputs.may_write(file):
                    return
                _announce(loaded, file, part, cuts)
                with progress_bar(shown(file.name)) as show:
                    result = work(loaded, file, lambda p: show(p.seconds, p.total_seconds, f"{clock(p.seconds)} heard"))
                hand_over(loaded, file, result)

            done += went_well(both, told)
    if done < len(files):
        raise typer.Exit(2)


def load_quietly(model: str, device: str, dtype: str) -> "FastSLM":
    """`fastslm.load`, without what transformers says of its own doings."""
    from transformers.utils import logging

    from fastslm.loading import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load(model, device, dtype)


def name_written(result: Path | dict[str, object]) -> None:
    """Print where a result was written, and as JSON what else there is to say of it.

    Where nobody reads on, those still to come are written nevertheless.
    """
    try:
        if isinstance(result, dict):
            print_json(result)
        else:
            # A program gets the name itself.
            print_text(shown(result) if sys.stdout is not None and sys.stdout.isatty() else result)
    except BrokenPipeError:
        forget_what_cannot_be_written()


def forget_what_cannot_be_written() -> None:
    """Else Python tries it again at its end, and has another word for it."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def warn(file: Path, warnings: tuple[str, ...]) -> None:
    """What a result warns of, on standard error."""
    for sentence in warnings:
        named = sentence if str(file) in sentence else f"{shown(file)}: {sentence}"
        say(f"warning: {named}")


def _look_at(file: Path, part: "Part | None", cuts: str | None) -> None:
    """Raise what shows of a file in its first second, before a model is loaded or fetched."""
    from fastslm.audio import SAMPLE_RATE, probe_duration, stream_audio
    from fastslm.audio.part import WHOLE, Part
    from fastslm.longform.cuts import refuse_cuts_of_memory
    from fastslm.longform.memory import SUFFIX, SpeechMemory

    if file.suffix.lower() == SUFFIX:
        SpeechMemory.load(file)
        refuse_cuts_of_memory(cuts, str(file))
        (part or WHOLE).refuse_of_memory(str(file))
    elif os.path.isfile(file):  # not of the path, which raises where a name is too long
        track = Part(track=(part or WHOLE).track)
        next(stream_audio(file, block_samples=SAMPLE_RATE, part=track, on_warning=_let_pass))
    else:
        probe_duration(file)  # of a pipe nothing is taken


def _let_pass(sentence: str) -> None:
    """That is said where the file is read."""


def _announce(loaded: "FastSLM", file: Path, part: "Part | None", cuts: str | None) -> None:
    """At the start of a long run, what it will take."""
    from fastslm.audio import probe_duration
    from fastslm.audio.part import WHOLE
    from fastslm.longform.memory import SUFFIX
    from fastslm.longform.plan import LONG_SECONDS, plan
    from fastslm.speech import own_cuts

    seconds = None if file.suffix.lower() == SUFFIX else probe_duration(file, part=part or WHOLE)
    if seconds is not None and seconds >= LONG_SECONDS:
        chosen: Any = cuts or own_cuts(loaded.model)
        encoder = loaded.encoder
        takes = plan(loaded.model, seconds, cuts=chosen, encoder_dtype=encoder.dtype, kernels=encoder.kernels)
        say(f"{shown(file)} is {takes.line()}")


def went_well(work: Callable[[], None], told: set[str]) -> bool:
    """Whether it was done; if not, by the user's fault, the sentence is printed, unless it was told before."""
    try:
        work()
    except FastSLMError as error:
        sentence = str(error)
        if sentence not in told:
            say(sentence)
        told.add(sentence)
        return False
    return True


class _Lines:
    """Progress for a log: every `LINE_SECONDS`, how far it is and how long it still takes at the pace so far."""

    def __init__(self, name: str):
        self.name = name
        self.started = self.told = monotonic()
        self.first: float | None = None  # where it began, or went on

    def tell(self, done: float, total: float | None, note: str) -> None:
        now = monotonic()
        self.first = done if self.first is None else self.first
        if now - self.told < LINE_SECONDS:
            return
        self.told = now
        left = ""
        if total is not None and done > self.first:
            seconds = (now - self.started) * max(0.0, total - done) / (done - self.first)
            left = f", about {timedelta(seconds=round(seconds))} left"
        say(f"{self.name}: {note}{left}")


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[float, float | None, str], None]]:
    """A bar with the time left, told what is done, of how much, and a note; without a terminal, a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines(name).tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),  # names may hold [brackets]
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
