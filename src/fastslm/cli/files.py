"""One command over several files: each is read whatever becomes of the others, and progress is shown for each."""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from fastslm.errors import FastSLMError, OptionError

if TYPE_CHECKING:
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
    partial: bool = False,
    cuts: str | None = None,
    together: Sequence[Path] = (),
) -> None:
    """`work` on each file, then `hand_over` what it gave. A file at fault is said, and the others go on.

    Files are looked at first, and options checked, so that what cannot be done costs no loading of the model. Results
    are handed over as they come, each after its progress was cleared from the terminal.

    Args:
        check: raises what is wrong with the options, by a model without its weights; `None` if none were given.
        partial: whether a recording that breaks off is no fault.
        cuts: that were chosen, which a memory cannot have.
        together: the files that are taken with the first, it among them.

    Raises:
        typer.Exit: with status 2, at the end, if a file was at fault.
        OptionError: from `check`.
    """
    from fastslm.longform.results import clock

    told: set[str] = set()

    def look(file: Path) -> None:
        for own in together or [file]:
            _look_at(own, partial, cuts)

    readable = [file for file in files if went_well(lambda file=file: look(file), told)]
    done = 0
    if readable:
        if check is not None:
            from fastslm.loading import unloaded

            check(unloaded(model))
        loaded = load_quietly(model, device, dtype)
        for file in readable:

            def both(file: Path = file) -> None:
                _announce(loaded, file, cuts)
                with progress_bar(file.name) as show:
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


def output_paths(
    files: list[Path], folder: Path, suffix: str, *, read: Sequence[Path] = (), kept: Path | None = None
) -> dict[Path, Path]:
    """Where the result of each file goes.

    Args:
        read: all files that are read, where they are more than those that have a result.
        kept: a file beside them that is read or written, whether it is there yet or not.

    Raises:
        OptionError: two would go to the same place, or one to that of a file that is read, or kept.
        FastSLMError: the folder cannot be made or written to, a folder is where a result is to go, or its name is too
            long.
    """
    from fastslm.longform.memory import SUFFIX

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastSLMError(
            f"The folder {folder} cannot be made ({error.strerror}): choose another --output-dir."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FastSLMError(f"The folder {folder} cannot be written to: choose another --output-dir.")
    # Of thousands of files on a server each look counts, so each is looked at once. A memory may be written anew.
    recordings = [own for own in read or files if own.suffix.lower() != SUFFIX]
    sources = {(found.st_dev, found.st_ino): own for own in recordings if (found := _found(own)) is not None}
    makers: dict[Path, Path] = {}
    for file in files:
        target = folder / f"{file.stem}{suffix}"
        if target in makers:
            raise OptionError(f"{makers[target]} and {file} would both be written to {target}: run them apart.")
        if kept is not None and target.resolve() == kept.resolve():
            raise OptionError(f"The result of {file} would be written over {kept}: give them different names.")
        found = _found(target, f"the result of {file}")
        if found is not None and (overwritten := sources.get((found.st_dev, found.st_ino))) is not None:
            raise OptionError(f"The result of {file} would be written over {overwritten}: choose another --output-dir.")
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise FastSLMError(f"{target} is a folder, and the result of {file} is to go there: move it away.")
        makers[target] = file
    return {file: target for target, file in makers.items()}


def _found(path: Path, result: str | None = None) -> os.stat_result | None:
    """What is there, `None` if nothing is.

    Raises:
        FastSLMError: nothing can ever be there, where a `result` is to go.
    """
    try:
        return os.stat(path)
    except OSError as error:
        if result is not None and error.errno == errno.ENAMETOOLONG:
            raise FastSLMError(
                f"{path}, where {result} is to go, is too long a name for the disk: shorten the file's name."
            ) from None
        return None


def name_written(line: object) -> None:
    """Print where a result was written; where nobody reads on, those still to come are written nevertheless."""
    try:
        typer.echo(line)
    except BrokenPipeError:
        forget_what_cannot_be_written()


def forget_what_cannot_be_written() -> None:
    """Else Python tries it again at its end, and has another word for it."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def warn(file: Path, warnings: tuple[str, ...]) -> None:
    """What a result warns of, on standard error."""
    for sentence in warnings:
        named = sentence if str(file) in sentence else f"{file}: {sentence}"
        typer.echo(f"fastslm: warning: {named}", err=True)


def _look_at(file: Path, partial: bool, cuts: str | None) -> None:
    """Raise what shows of a file in its first second, or that it breaks off: before a model is loaded or fetched."""
    from fastslm.audio import SAMPLE_RATE, probe_duration, require_whole, stream_audio
    from fastslm.longform.cuts import refuse_cuts_of_memory
    from fastslm.longform.memory import SUFFIX, SpeechMemory

    if file.suffix.lower() == SUFFIX:
        SpeechMemory.load(file)
        refuse_cuts_of_memory(cuts, str(file))
    elif os.path.isfile(file):  # not of the path, which raises where a name is too long
        next(stream_audio(file, block_samples=SAMPLE_RATE, on_cut=_let_pass if partial else None))
        if not partial:
            require_whole(file)
    else:
        probe_duration(file)  # of a pipe nothing is taken


def _let_pass(sentence: str) -> None:
    """That is said where the file is read."""


def _announce(loaded: "FastSLM", file: Path, cuts: str | None) -> None:
    """At the start of a long run, what it will take."""
    from fastslm.audio import probe_duration
    from fastslm.longform.memory import SUFFIX
    from fastslm.longform.plan import LONG_SECONDS, plan
    from fastslm.speech import own_cuts

    seconds = None if file.suffix.lower() == SUFFIX else probe_duration(file)
    if seconds is not None and seconds >= LONG_SECONDS:
        chosen: Any = cuts or own_cuts(loaded.model)
        encoder = loaded.encoder
        takes = plan(loaded.model, seconds, cuts=chosen, encoder_dtype=encoder.dtype, kernels=encoder.kernels)
        typer.echo(f"fastslm: {file} is {takes.line()}", err=True)


def went_well(work: Callable[[], None], told: set[str]) -> bool:
    """Whether it was done; if not, by the user's fault, the sentence is printed, unless it was told before."""
    try:
        work()
    except FastSLMError as error:
        sentence = " ".join(str(error).split())
        if sentence not in told:
            typer.echo(f"fastslm: {sentence}", err=True)
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
        typer.echo(f"fastslm: {self.name}: {note}{left}", err=True)


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
