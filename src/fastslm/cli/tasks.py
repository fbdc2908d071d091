"""`fastslm transcribe|translate|summarize|ask|encode`: the four tasks, and a memory for later."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslm.cli.files import for_each_file, output_paths, warn
from fastslm.cli.options import AsJson, Cuts, Device, DType, Files, MaxNewTokens, Model, OutputDir, Reader
from fastslm.cli.task_options import (
    AnswerMethod,
    ContextWindows,
    Method,
    NoSpeech,
    PrefixFile,
    Repetition,
    RopeScaling,
    SpanSeconds,
    Together,
)
from fastslm.errors import OptionError

if TYPE_CHECKING:
    from fastslm.longform.encoder import OnProgress
    from fastslm.longform.memory import SpeechMemory
    from fastslm.longform.results import Answer, Progress, Transcript
    from fastslm.speech import FastSLM

DEFAULT_MODEL = "fastslm-tiny"
app = typer.Typer()


@app.command()
def transcribe(
    files: Files,
    model: Model = DEFAULT_MODEL,
    format_name: Annotated[
        str | None, typer.Option("--format", help="text, json, srt or vtt; text by default.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    output_dir: OutputDir = None,
    language: Annotated[
        str | None, typer.Option(help="What is spoken; by default the model's first language.", show_default=False)
    ] = None,
    reader: Reader = "auto",
    max_new_tokens: MaxNewTokens = None,
    method: Method = "window",
    context_windows: ContextWindows = None,
    repetition: Repetition = "retry",
    no_speech: NoSpeech = None,
    cuts: Cuts = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Write down what is said, with times."""
    from fastslm.longform.formats import format_named
    from fastslm.writing import write_text

    if as_json and format_name not in (None, "json"):
        raise OptionError(f"--json and --format {format_name} were both given: choose one of them.")
    form = format_named("json" if as_json else format_name or "text")
    if form.has_marks and output_dir is None and len(files) > 1:
        raise OptionError(f"Several {form.name} files cannot follow one another on standard output: give --output-dir.")
    targets = output_paths(files, output_dir, form.suffix) if output_dir else {}

    def work(loaded: "FastSLM", file: Path, on_progress: "OnProgress") -> "Transcript":
        return loaded.transcribe(
            file,
            language=language,
            reader=reader,  # type: ignore[arg-type]
            max_new_tokens=max_new_tokens,
            method=method,  # type: ignore[arg-type]
            context_windows=context_windows,
            repetition=repetition,  # type: ignore[arg-type]
            no_speech=no_speech,  # type: ignore[arg-type]
            cuts=cuts,  # type: ignore[arg-type]
            on_progress=on_progress,
        )

    def hand_over(loaded: "FastSLM", file: Path, transcript: "Transcript") -> None:
        warn(file, transcript.warnings)
        if file in targets:
            as_file = (
                _json(file, loaded, transcript.as_dict()) + "\n" if form.name == "json" else form.write(transcript)
            )
            typer.echo(write_text(targets[file], as_file))
        elif form.name == "json":
            _print_json(file, loaded, transcript.as_dict())
        else:
            _print_text(file, files, form.write(transcript))

    for_each_file(files, model, device, dtype, work, hand_over)


@app.command()
def translate(
    files: Files,
    to: Annotated[str, typer.Option(help="Code or English name of the language to translate into.")] = "ko",
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    output_dir: OutputDir = None,
    max_new_tokens: MaxNewTokens = None,
    method: AnswerMethod = "auto",
    span_seconds: SpanSeconds = None,
    rope_scaling: RopeScaling = None,
    repetition: Repetition = "retry",
    prefix_file: PrefixFile = None,
    together: Together = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say in another language what is said."""
    _answers(
        files,
        (model, device, dtype),
        as_json,
        output_dir,
        together,
        {
            "max_new_tokens": max_new_tokens,
            "method": method,
            "span_seconds": span_seconds,
            "rope_scaling": rope_scaling,
            "repetition": repetition,
            "prefix_file": prefix_file,
        },
        lambda loaded, sources, options, show: loaded.translate(sources, to, **options, on_progress=show),
    )


@app.command()
def summarize(
    files: Files,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    output_dir: OutputDir = None,
    max_new_tokens: MaxNewTokens = None,
    method: AnswerMethod = "auto",
    span_seconds: SpanSeconds = None,
    rope_scaling: RopeScaling = None,
    repetition: Repetition = "retry",
    prefix_file: PrefixFile = None,
    together: Together = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say in short what is said."""
    _answers(
        files,
        (model, device, dtype),
        as_json,
        output_dir,
        together,
        {
            "max_new_tokens": max_new_tokens,
            "method": method,
            "span_seconds": span_seconds,
            "rope_scaling": rope_scaling,
            "repetition": repetition,
            "prefix_file": prefix_file,
        },
        lambda loaded, sources, options, show: loaded.summarize(sources, **options, on_progress=show),
    )


@app.command()
def ask(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE... QUESTION", help="Recordings or memories, then what to ask.")
    ],
    question: Annotated[
        str | None, typer.Option(help="What to ask; all arguments are files then.", show_default=False)
    ] = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    output_dir: OutputDir = None,
    max_new_tokens: MaxNewTokens = None,
    method: AnswerMethod = "auto",
    span_seconds: SpanSeconds = None,
    rope_scaling: RopeScaling = None,
    repetition: Repetition = "retry",
    prefix_file: PrefixFile = None,
    together: Together = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Answer a question about recordings, about each alone or about all together."""
    if question is None:
        *arguments, question = arguments
    if not arguments:
        raise OptionError(
            f"There is no file, or no question, in {question!r}: give files, and the question after them."
        )
    asked = question
    _answers(
        [Path(file) for file in arguments],
        (model, device, dtype),
        as_json,
        output_dir,
        together,
        {
            "max_new_tokens": max_new_tokens,
            "method": method,
            "span_seconds": span_seconds,
            "rope_scaling": rope_scaling,
            "repetition": repetition,
            "prefix_file": prefix_file,
        },
        lambda loaded, sources, options, show: loaded.ask(sources, asked, **options, on_progress=show),
    )


@app.command()
def encode(
    files: Files,
    model: Model = DEFAULT_MODEL,
    output_dir: Annotated[Path, typer.Option(help="Folder of the memories.")] = Path(),
    cuts: Cuts = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Keep what the model hears: FILE.fslm, which every task takes in place of the recording.

    What is finished of a long recording is kept in FILE.fslm.partial: stopped or killed, the same command goes on.
    """
    from fastslm.longform import resumption
    from fastslm.longform.memory import SUFFIX
    from fastslm.longform.results import clock

    targets = output_paths(files, output_dir, SUFFIX)

    def partial(file: Path) -> Path:
        return targets[file].with_name(targets[file].name + resumption.SUFFIX)

    def work(loaded: "FastSLM", file: Path, on_progress: "OnProgress") -> "SpeechMemory":
        begun = False

        def show(progress: "Progress") -> None:
            nonlocal begun
            if not begun and progress.seconds:
                typer.echo(f"fastslm: {file} goes on at {clock(progress.seconds)}, from {partial(file)}.", err=True)
            begun = True
            on_progress(progress)

        if file.suffix.lower() == SUFFIX:
            return loaded.encode(file, cuts=cuts)  # type: ignore[arg-type]
        try:
            return loaded.encode(file, cuts=cuts, kept_at=partial(file), on_progress=show)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            if partial(file).exists():
                typer.echo(
                    f"\nfastslm: {partial(file)} holds what is done: the same command goes on from it.", err=True
                )
            raise

    def hand_over(loaded: "FastSLM", file: Path, memory: "SpeechMemory") -> None:
        warn(file, memory.facts.warnings)
        path = memory.save(targets[file])
        partial(file).unlink(missing_ok=True)
        if as_json:
            facts = {"memory": str(path), "duration": round(memory.duration, 3), "windows": len(memory.tokens)}
            _print_json(file, loaded, {**facts, "audio_tokens": memory.audio_tokens})
        else:
            typer.echo(path)

    for_each_file(files, model, device, dtype, work, hand_over)


def _answers(
    files: list[Path],
    which: tuple[str, str, str],
    as_json: bool,
    output_dir: Path | None,
    together: bool,
    options: dict[str, Any],
    task: "Callable[[FastSLM, Path | list[Path], dict[str, Any], OnProgress], Answer]",
) -> None:
    """What a task of the language model says of each file, or of all of them as one."""
    from fastslm.writing import write_text

    if options["prefix_file"] is not None and len(files) > 1 and not together:
        raise OptionError("A --prefix-file keeps one prompt, and there are several files: give one, or --together.")
    named = files[:1] if together else files
    targets = output_paths(named, output_dir, ".json" if as_json else ".txt") if output_dir else {}

    def work(loaded: "FastSLM", file: Path, on_progress: "OnProgress") -> "Answer":
        return task(loaded, list(files) if together else file, options, on_progress)

    def hand_over(loaded: "FastSLM", file: Path, answer: "Answer") -> None:
        warn(file, answer.warnings)
        result: dict[str, object] = dict(answer.as_dict())
        if together:
            result["files"] = [str(own) for own in files]
        if file in targets:
            text = _json(file, loaded, result) if as_json else answer.text
            typer.echo(write_text(targets[file], text + "\n"))
        elif as_json:
            _print_json(file, loaded, result)
        else:
            _print_text(file, named, answer.text + "\n")

    for_each_file(named, *which, work, hand_over)


def _json(file: Path, loaded: "FastSLM", result: dict[str, object]) -> str:
    return json.dumps({"file": str(file), "model": loaded.name, **result}, ensure_ascii=False)


def _print_json(file: Path, loaded: "FastSLM", result: dict[str, object]) -> None:
    typer.echo(_json(file, loaded, result))


def _print_text(file: Path, files: list[Path], text: str) -> None:
    if len(files) > 1:
        typer.echo(f"==> {file} <==")
    typer.echo(text, nl=False)
