"""`fastslm transcribe|translate|summarize|ask|encode`: the four tasks, and a memory for later."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fastslm.cli.files import for_each_file, name_written, warn
from fastslm.cli.options import (
    AsJson,
    Cuts,
    Decoder,
    Device,
    DType,
    Duration,
    Files,
    MaxNewTokens,
    Model,
    OutputDir,
    Overwrite,
    Reader,
    SkipExisting,
    Start,
    Strict,
    Track,
    named_decoder,
    path_named,
)
from fastslm.cli.outputs import outputs
from fastslm.cli.printing import as_unicode, print_json, print_text, say, shown, tell
from fastslm.cli.task_options import (
    AnswerMethod,
    ContextWindows,
    Hotwords,
    Method,
    NoSpeech,
    PrefixFile,
    Prompt,
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
    from fastslm.model.modeling import FastSLMForConditionalGeneration
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
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    language: Annotated[
        str | None, typer.Option(help="What is spoken; by default the model's first language.", show_default=False)
    ] = None,
    decoder: Decoder = "auto",
    max_new_tokens: MaxNewTokens = None,
    method: Method = "window",
    context_windows: ContextWindows = None,
    repetition: Repetition = "retry",
    no_speech: NoSpeech = None,
    prompt: Prompt = None,
    hotwords: Hotwords = None,
    cuts: Cuts = None,
    track: Track = None,
    start: Start = None,
    duration: Duration = None,
    strict: Strict = False,
    device: Device = "auto",
    dtype: DType = "auto",
    reader: Reader = None,
) -> None:
    """Write down what is said, with times."""
    from fastslm.audio.part import Part
    from fastslm.longform.cuts import check_cuts
    from fastslm.longform.formats import FORMATS, format_named
    from fastslm.longform.transcription import TranscriptionOptions
    from fastslm.writing import json_text, write_text

    if as_json and format_name not in (None, "json"):
        raise OptionError(f"--json and --format {format_name} were both given: choose one of them.")
    form = format_named("json" if as_json else format_name or "text")
    if form.has_marks and output_dir is None and len(files) > 1:
        raise OptionError(f"Several {form.name} files cannot follow one another on standard output: give --output-dir.")
    if overwrite and (taken := [str(file) for file in files if str(file) in FORMATS and not file.exists()]):
        # In openai/whisper -f is --output_format.
        raise OptionError(f"{taken[0]} was taken for a recording, as -f is --overwrite: give --format {taken[0]}.")
    options: dict[str, Any] = {
        "language": language,
        "decoder": named_decoder(decoder, reader),
        "max_new_tokens": max_new_tokens,
        "method": method,
        "context_windows": context_windows,
        "repetition": repetition,
        "no_speech": no_speech,
        "prompt": None if prompt is None else as_unicode(prompt),
        "hotwords": None if hotwords is None else as_unicode(hotwords),
    }
    chosen = TranscriptionOptions(**options)
    part = Part.of(track, start, duration)

    def check(empty: "FastSLMForConditionalGeneration") -> None:
        chosen.resolved(empty)
        check_cuts(cuts or "fixed", empty.config.mel_mode)

    places = outputs(files, output_dir, form.suffix, overwrite=overwrite, skip_existing=skip_existing)

    def work(loaded: "FastSLM", file: Path, on_progress: "OnProgress") -> "Transcript":
        return loaded.transcribe(
            file,
            **options,
            cuts=cuts,  # type: ignore[arg-type]
            track=track,
            start=start,
            duration=duration,
            strict=strict,
            on_progress=on_progress,
        )

    def hand_over(loaded: "FastSLM", file: Path, transcript: "Transcript") -> None:
        warn(file, transcript.warnings)
        if file in places.targets:
            result = _named(file, loaded, transcript.as_dict())
            as_file = f"{json_text(result)}\n" if form.name == "json" else form.write(transcript)
            if places.may_write(file):
                name_written(write_text(places.targets[file], as_file))
        elif form.name == "json":
            print_json(_named(file, loaded, transcript.as_dict()))
        else:
            _print_text(file, files, form.write(transcript))

    given = chosen != TranscriptionOptions() or cuts is not None
    for_each_file(
        files,
        model,
        device,
        dtype,
        work,
        hand_over,
        check=check if given else None,
        part=part,
        cuts=cuts,
        outputs=places,
    )


@app.command()
def translate(
    files: Files,
    to: Annotated[
        str | None,
        typer.Option(
            help="Code or English name of the language to translate into; by default the first that the model has "
            "learnt, Korean where it does not say.",
            show_default=False,
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    max_new_tokens: MaxNewTokens = None,
    method: AnswerMethod = "auto",
    span_seconds: SpanSeconds = None,
    rope_scaling: RopeScaling = None,
    repetition: Repetition = "retry",
    prefix_file: PrefixFile = None,
    together: Together = False,
    track: Track = None,
    start: Start = None,
    duration: Duration = None,
    strict: Strict = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say in another language what is said."""
    _answers(
        files,
        (model, device, dtype),
        as_json,
        (output_dir, overwrite, skip_existing),
        together,
        {"track": track, "start": start, "duration": duration, "strict": strict},
        {
            "max_new_tokens": max_new_tokens,
            "method": method,
            "span_seconds": span_seconds,
            "rope_scaling": rope_scaling,
            "repetition": repetition,
            "prefix_file": prefix_file,
        },
        "translate",
        {} if to is None else {"language": to},
        lambda loaded, sources, options, show: loaded.translate(sources, to, **options, on_progress=show),
    )


@app.command()
def summarize(
    files: Files,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    max_new_tokens: MaxNewTokens = None,
    method: AnswerMethod = "auto",
    span_seconds: SpanSeconds = None,
    rope_scaling: RopeScaling = None,
    repetition: Repetition = "retry",
    prefix_file: PrefixFile = None,
    together: Together = False,
    track: Track = None,
    start: Start = None,
    duration: Duration = None,
    strict: Strict = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say in short what is said."""
    _answers(
        files,
        (model, device, dtype),
        as_json,
        (output_dir, overwrite, skip_existing),
        together,
        {"track": track, "start": start, "duration": duration, "strict": strict},
        {
            "max_new_tokens": max_new_tokens,
            "method": method,
            "span_seconds": span_seconds,
            "rope_scaling": rope_scaling,
            "repetition": repetition,
            "prefix_file": prefix_file,
        },
        "summarize",
        {},
        lambda loaded, sources, options, show: loaded.summarize(sources, **options, on_progress=show),
    )


class _Ask(TyperCommand):
    """Files and the question are one list to the parser, and two things to people."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "{FILE}...", "{QUESTION}"]


@app.command(cls=_Ask)
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
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    max_new_tokens: MaxNewTokens = None,
    method: AnswerMethod = "auto",
    span_seconds: SpanSeconds = None,
    rope_scaling: RopeScaling = None,
    repetition: Repetition = "retry",
    prefix_file: PrefixFile = None,
    together: Together = False,
    track: Track = None,
    start: Start = None,
    duration: Duration = None,
    strict: Strict = False,
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
    asked = as_unicode(question)
    _answers(
        [path_named(file) for file in arguments],
        (model, device, dtype),
        as_json,
        (output_dir, overwrite, skip_existing),
        together,
        {"track": track, "start": start, "duration": duration, "strict": strict},
        {
            "max_new_tokens": max_new_tokens,
            "method": method,
            "span_seconds": span_seconds,
            "rope_scaling": rope_scaling,
            "repetition": repetition,
            "prefix_file": prefix_file,
        },
        "ask",
        {"question": asked},
        lambda loaded, sources, options, show: loaded.ask(sources, asked, **options, on_progress=show),
    )


@app.command()
def encode(
    files: Files,
    model: Model = DEFAULT_MODEL,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="FOLDER", parser=path_named, help="Folder of the memories.")
    ] = Path(),
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    cuts: Cuts = None,
    track: Track = None,
    start: Start = None,
    duration: Duration = None,
    strict: Strict = False,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Keep what the model hears: FILE.fslm, which every task takes in place of the recording.

    What is finished of a long recording is kept in FILE.fslm.partial: stopped or killed, the same command goes on.
    """
    from fastslm.audio.part import Part
    from fastslm.longform import resumption
    from fastslm.longform.cuts import check_cuts
    from fastslm.longform.memory import SUFFIX
    from fastslm.longform.results import clock

    part = Part.of(track, start, duration)
    places = outputs(files, output_dir, SUFFIX, overwrite=overwrite, skip_existing=skip_existing)

    def kept(file: Path) -> Path:
        target = places.targets[file]
        return target.with_name(target.name + resumption.SUFFIX)

    def work(loaded: "FastSLM", file: Path, on_progress: "OnProgress") -> "SpeechMemory":
        begun = False

        def show(progress: "Progress") -> None:
            nonlocal begun
            if not begun and progress.seconds:
                say(f"{shown(file)} goes on at {clock(progress.seconds)}, from {shown(kept(file))}.")
            begun = True
            on_progress(progress)

        if file.suffix.lower() == SUFFIX:
            return loaded.encode(file, cuts=cuts)  # type: ignore[arg-type]
        try:
            return loaded.encode(
                file,
                cuts=cuts,  # type: ignore[arg-type]
                track=track,
                start=start,
                duration=duration,
                strict=strict,
                kept_at=kept(file),
                on_progress=show,
            )
        except KeyboardInterrupt:
            if kept(file).exists():
                tell("")  # below the ^C
                say(f"{shown(kept(file))} holds what is done: the same command goes on from it.")
            raise

    def hand_over(loaded: "FastSLM", file: Path, memory: "SpeechMemory") -> None:
        warn(file, memory.facts.warnings)
        if not places.may_write(file):
            return
        path = memory.save(places.targets[file])
        kept(file).unlink(missing_ok=True)
        if as_json:
            facts: dict[str, object] = {"memory": as_unicode(path), "duration": round(memory.duration, 3)}
            facts |= {"windows": len(memory.tokens), "audio_tokens": memory.audio_tokens, "start": memory.start}
            facts |= {key: getattr(memory.facts, key) for key in ("warnings", "partial", "missing_seconds")}
            name_written(_named(file, loaded, facts))
        else:
            name_written(path)

    def check(empty: "FastSLMForConditionalGeneration") -> None:
        check_cuts(cuts or "fixed", empty.config.mel_mode)

    for_each_file(
        files,
        model,
        device,
        dtype,
        work,
        hand_over,
        check=check if cuts else None,
        part=part,
        cuts=cuts,
        outputs=places,
    )


def _answers(
    files: list[Path],
    which: tuple[str, str, str],
    as_json: bool,
    where: tuple[Path | None, bool, bool],
    together: bool,
    listening: dict[str, Any],
    options: dict[str, Any],
    task: str,
    prompt_options: dict[str, str],
    answer: "Callable[[FastSLM, Path | list[Path], dict[str, Any], OnProgress], Answer]",
) -> None:
    """What a task of the language model says of each file, or of all of them as one.

    Args:
        which: the model, its device and its dtype. where: the folder of results, and what becomes of those there.
        listening: what is read of each recording.
    """
    from fastslm.audio.part import Part
    from fastslm.longform.formats import marked
    from fastslm.longform.questions import AnswerOptions
    from fastslm.prompts import build_content
    from fastslm.writing import json_text, write_text

    build_content(task, **prompt_options)  # raises what is wrong with the question or the language
    chosen = AnswerOptions(**options)
    part = Part.of(listening["track"], listening["start"], listening["duration"])

    prefix_file: Path | None = options["prefix_file"]
    if prefix_file is not None and len(files) > 1 and not together:
        raise OptionError("A --prefix-file keeps one prompt, and there are several files: give one, or --together.")
    named = files[:1] if together else files
    suffix = ".json" if as_json else ".txt"
    folder, overwrite, skip_existing = where
    places = outputs(
        named, folder, suffix, overwrite=overwrite, skip_existing=skip_existing, read=files, kept=prefix_file
    )

    def work(loaded: "FastSLM", file: Path, on_progress: "OnProgress") -> "Answer":
        return answer(loaded, list(files) if together else file, {**options, **listening}, on_progress)

    def hand_over(loaded: "FastSLM", file: Path, found: "Answer") -> None:
        warn(file, found.warnings)
        result: dict[str, object] = dict(found.as_dict())
        text = marked(found.text, found.partial)
        if together:
            result["files"] = [as_unicode(own) for own in files]
        if file in places.targets:
            as_file = json_text(_named(file, loaded, result)) if as_json else text
            if places.may_write(file):
                name_written(write_text(places.targets[file], f"{as_file}\n"))
        elif as_json:
            print_json(_named(file, loaded, result))
        else:
            _print_text(file, named, text + "\n")

    for_each_file(
        named,
        *which,
        work,
        hand_over,
        check=chosen.check if chosen != AnswerOptions() else None,
        part=part,
        together=files if together else (),
        outputs=places,
    )


def _named(file: Path, loaded: "FastSLM", result: dict[str, object]) -> dict[str, object]:
    """A result with what it is of, for JSON."""
    return {"file": as_unicode(file), "model": loaded.name, **result}


def _print_text(file: Path, files: list[Path], text: str) -> None:
    if len(files) > 1:
        print_text(f"==> {shown(file)} <==")
    print_text(text, end="")
