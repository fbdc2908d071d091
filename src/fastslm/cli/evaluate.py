"""`fastslm evaluate SUITE`: figures that say how they were got."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslm.cli.files import load_quietly, progress_bar
from fastslm.cli.options import Decoder, Device, DType, Model, Reader, named_decoder, refuse_overwriting
from fastslm.cli.printing import print_json, print_text, tell
from fastslm.errors import OptionError

if TYPE_CHECKING:
    from fastslm.evaluation.suite import Suite
    from fastslm.evaluation.systems import System

app = typer.Typer(no_args_is_help=True, help="Measure a model: asr, ast, ssum, sqqa, silence; rescore and compare.")

DEFAULT_MODEL = "fastslm-tiny"
# Short, since a model that has not learnt to stop writes on to the end of its budget.
ANSWER_TOKENS = 32
Manifest = Annotated[Path, typer.Option(help="JSONL with one clip a line.")]
Transcriber = Annotated[
    str, typer.Option(help="fastslm, or whisper: Whisper tiny.en with its own decoder, for comparison.")
]
Answerer = Annotated[
    str,
    typer.Option(help="fastslm, or cascade: Whisper tiny.en's transcript read by the untrained language model."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many clips.", show_default=False)]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens that a text may have.")]
WriteTo = Annotated[
    Path | None,
    typer.Option(
        "--predictions", help="Write what was asked and what was written there, as JSONL.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


@app.callback()
def root() -> None:
    """Measure a model."""


@app.command()
def asr(
    manifest: Manifest,
    model: Model = DEFAULT_MODEL,
    system: Transcriber = "fastslm",
    limit: Limit = None,
    decoder: Decoder = "auto",
    predictions: WriteTo = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
    reader: Reader = None,
) -> None:
    """Word and character error rates of transcripts."""
    from fastslm.evaluation.suites.asr import Recognition

    _measure(
        Recognition(),
        manifest,
        model,
        system,
        limit,
        predictions,
        as_json,
        device,
        dtype,
        decoder=named_decoder(decoder, reader),
    )


@app.command()
def silence(
    manifest: Manifest,
    model: Model = DEFAULT_MODEL,
    system: Transcriber = "fastslm",
    limit: Limit = None,
    decoder: Decoder = "auto",
    predictions: WriteTo = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
    reader: Reader = None,
) -> None:
    """Words that are written about clips in which nobody speaks."""
    from fastslm.evaluation.suites.silence import Silence

    _measure(
        Silence(),
        manifest,
        model,
        system,
        limit,
        predictions,
        as_json,
        device,
        dtype,
        decoder=named_decoder(decoder, reader),
    )


@app.command()
def sqqa(
    manifest: Manifest,
    model: Model = DEFAULT_MODEL,
    system: Answerer = "fastslm",
    limit: Limit = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Ask only questions whose row is of this `kind`; once for each.", show_default=False),
    ] = None,
    max_new_tokens: MaxNewTokens = ANSWER_TOKENS,
    predictions: WriteTo = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Answers to questions: exact match, token F1, and what is not mentioned."""
    from fastslm.evaluation.suites.sqqa import QuestionAnswering

    suite = QuestionAnswering(kind or ())
    _measure(suite, manifest, model, system, limit, predictions, as_json, device, dtype, max_new_tokens=max_new_tokens)


@app.command()
def ast(
    manifest: Manifest,
    model: Model = DEFAULT_MODEL,
    system: Answerer = "fastslm",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 256,
    predictions: WriteTo = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """BLEU of translations."""
    from fastslm.evaluation.suites.ast import Translation

    suite = Translation()
    _measure(suite, manifest, model, system, limit, predictions, as_json, device, dtype, max_new_tokens=max_new_tokens)


@app.command()
def ssum(
    manifest: Manifest,
    model: Model = DEFAULT_MODEL,
    system: Answerer = "fastslm",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 256,
    predictions: WriteTo = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """ROUGE-L of summaries."""
    from fastslm.evaluation.suites.ssum import Summarization

    suite = Summarization()
    _measure(suite, manifest, model, system, limit, predictions, as_json, device, dtype, max_new_tokens=max_new_tokens)


@app.command()
def rescore(
    predictions: Annotated[Path, typer.Argument(help="What --predictions wrote.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """The figures of predictions again, without the model."""
    from fastslm.evaluation.suite import report
    from fastslm.evaluation.suites import load_predictions

    suite, found = load_predictions(predictions)
    _print(suite, report(suite, found), as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Predictions of one system.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Those of another on the same clips.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """How much better the second of two systems is, by a paired bootstrap over the clips."""
    from fastslm.evaluation.compare import compare, summary
    from fastslm.evaluation.suites import load_predictions

    (suite, own), (_, other) = load_predictions(first), load_predictions(second)
    found = compare(suite, own, other)
    if as_json:
        print_json(found)
    else:
        print_text(summary(suite, found))


def _measure(
    suite: "Suite",
    manifest: Path,
    model: str,
    system: str,
    limit: int | None,
    predictions: Path | None,
    as_json: bool,
    device: str,
    dtype: str,
    *,
    decoder: str = "auto",
    max_new_tokens: int | None = None,
) -> None:
    """Run a suite and print its report. What is wrong with the files is said before the model is loaded.

    A disk that is full by the end does not cost the figures: they are printed all the same.
    """
    from fastslm.evaluation.suite import predict, read_requests, report
    from fastslm.evaluation.systems import system_named
    from fastslm.writing import require_place

    system_named(system, suite.task)
    if system != "fastslm" and (decoder != "auto" or model != DEFAULT_MODEL):
        raise OptionError("--model and --decoder belong to the system fastslm: leave them out.")
    if predictions is not None:
        refuse_overwriting(predictions, [manifest])
        require_place(predictions)
    requests = read_requests(suite, manifest, limit)
    if decoder != "auto":
        from fastslm.loading import unloaded
        from fastslm.longform.readers import reader_named

        reader_named(decoder, unloaded(model))
    chosen = _system(system, model, device, dtype, decoder, max_new_tokens)
    count = len(requests)
    with progress_bar(manifest.name) as show:
        done = predict(suite, chosen, manifest, requests, lambda done: show(done, count, f"{done} of {count} clips"))
    try:
        if predictions is not None:
            done.save(predictions)
    finally:
        _print(suite, report(suite, done), as_json)


def _system(name: str, model: str, device: str, dtype: str, decoder: str, max_new_tokens: int | None) -> "System":
    if name == "fastslm":
        from fastslm.evaluation.systems import FastSLMSystem

        return FastSLMSystem(load_quietly(model, device, dtype), decoder, max_new_tokens)
    from fastslm.evaluation.baselines import load_cascade, load_whisper

    if name == "whisper":
        return load_whisper(device, dtype)
    return load_cascade(device, dtype, max_new_tokens=max_new_tokens or ANSWER_TOKENS)


def _print(suite: "Suite", found: dict[str, Any], as_json: bool) -> None:
    from fastslm.evaluation.suite import summary
    from fastslm.writing import json_text

    try:
        if as_json:
            print_json(found)
        else:
            print_text(summary(suite, found))
    except BrokenPipeError:
        raise
    except OSError:
        # Standard output may be a file on a full disk, and the measurement have taken hours.
        tell(json_text(found) if as_json else summary(suite, found))
        raise
