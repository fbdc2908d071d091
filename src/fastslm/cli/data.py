"""`fastslm data`: manifests and Lhotse cuts looked through, imported, converted, composed, turned into tasks, mixed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastslm.cli.files import progress_bar
from fastslm.cli.options import Device, DType, refuse_overwriting
from fastslm.cli.printing import print_json, print_text, say
from fastslm.errors import OptionError

app = typer.Typer(no_args_is_help=True, help="Training data: import, validate, convert, compose …")

Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="JSONL with one clip a line.", show_default=False)]
Clips = Annotated[
    Path,
    typer.Argument(
        metavar="MANIFEST",
        help="JSONL with one clip a line, a file of Lhotse cuts, or a Shar folder.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The manifest to write.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Decides everything that is drawn.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


@app.callback()
def root() -> None:
    """Make and check training data."""


@app.command()
def validate(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST...", help="JSONL with one clip a line.", show_default=False)
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Decode nothing: durations are then what the files state.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array, one object for each MANIFEST.")] = False,
) -> None:
    """Find every fault of manifests: one line each, and exit status 2 if there is any."""
    from fastslm.data.validation import Fault, validate

    def tell(fault: Fault) -> None:
        if not as_json:
            say(fault.sentence)

    reports = []
    for manifest in manifests:
        with progress_bar(manifest.name) as show:
            report = validate(
                manifest, decode=not quick, on_fault=tell, on_clip=lambda done: show(done, None, f"{done} clips")
            )
        reports.append(report)
    if as_json:
        print_json([report.as_json() for report in reports])
    else:
        print_text("\n".join(report.summary() for report in reports))
    if any(report.faults for report in reports):
        raise typer.Exit(2)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder, or a parquet file.", show_default=False)],
    out: Out,
    kind: Annotated[str, typer.Option(help="librispeech, commonvoice or hf.", show_default=False)],
    split: Annotated[
        str | None, typer.Option(help="Of commonvoice: which table, by default validated.", show_default=False)
    ] = None,
    audio_column: Annotated[str | None, typer.Option(help="Of hf.", show_default=False)] = None,
    text_column: Annotated[str | None, typer.Option(help="Of hf.", show_default=False)] = None,
    id_column: Annotated[str | None, typer.Option(help="Of hf.", show_default=False)] = None,
    translation_column: Annotated[str | None, typer.Option(help="Of hf.", show_default=False)] = None,
    target_language: Annotated[str | None, typer.Option(help="Of the translations.", show_default=False)] = None,
    language: Annotated[
        str | None, typer.Option(help="Of the speech in hf, where no column names it.", show_default=False)
    ] = None,
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Leave faulty clips out and say each, instead of stopping.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a manifest of a corpus on disk. Of hf, the audio goes to tar shards beside it."""
    from fastslm.data.corpora import Columns, import_corpus

    faults: list[str] = []

    def tell(sentence: str) -> None:
        faults.append(sentence)
        say(f"left out: {sentence}")

    columns = Columns(audio_column, text_column, id_column, translation_column, target_language, language)
    with progress_bar(out.name) as show:
        clips, seconds = import_corpus(
            source,
            out,
            kind,
            split=split,
            columns=columns,
            on_fault=tell if skip_faulty else None,
            on_clip=lambda done: show(done, None, f"{done} clips"),
        )
    report = {"manifest": str(out), "clips": clips, "hours": round(seconds / 3600, 4), "left_out": len(faults)}
    left = f", {len(faults)} left out" if faults else ""
    _say(report, f"{out}: {clips} clips, {seconds / 3600:.2f} hours{left}", as_json)


@app.command()
def convert(
    source: Clips,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Cuts (.jsonl or .jsonl.gz), a folder, or a manifest.", show_default=False),
    ],
    shar: Annotated[bool, typer.Option("--shar", help="Write a Shar folder: cuts and their audio, in shards.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a JSONL manifest into Lhotse cuts, and cuts into a manifest. Audio stays where it is, if it can be named."""
    from fastslm.data.conversion import cuts_to_manifest, manifest_to_cuts, manifest_to_shar
    from fastslm.data.cuts import holds_cuts

    refuse_overwriting(out, [source])
    from_cuts = holds_cuts(source)
    if from_cuts and shar:
        raise OptionError(f"{source} holds cuts, which lhotse writes as Shar: lhotse shar export {source} {out}.")
    write = cuts_to_manifest if from_cuts else manifest_to_shar if shar else manifest_to_cuts
    with progress_bar(out.name) as show:
        count = write(source, out, lambda done: show(done, None, f"{done} cuts"))
    kind = "manifest" if from_cuts else "shar" if shar else "cuts"
    said = f"{out}: {count} {'clips' if from_cuts else 'cuts'}"
    _say({"out": str(out), "kind": kind, "rows": count}, said, as_json)


@app.command()
def compose(
    manifest: Clips,
    out: Out,
    by: Annotated[str, typer.Option(help="random, speaker or semantic.")] = "random",
    minutes: Annotated[str, typer.Option(help="The shortest and the longest, as 1-15.")] = "1-15",
    count: Annotated[int, typer.Option(min=1, help="How many compositions.")] = 100,
    seed: Seed = 0,
    needles: Annotated[
        Path | None,
        typer.Option(help="A manifest of which one clip is put into each composition.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compose long recordings of a manifest's clips, as references into their audio."""
    from fastslm.data.composition import Composing, compose, compose_cuts, minutes_range
    from fastslm.data.conversion import write_cuts
    from fastslm.data.cut_audio import duration_of, sounding
    from fastslm.data.cuts import holds_cuts, read_sounds
    from fastslm.data.manifest import read_manifest, write_manifest

    refuse_overwriting(out, [manifest, *([needles] if needles else [])])
    composing = Composing(by, minutes_range(minutes), count, seed)
    embed = None
    if by == "semantic":
        from transformers.utils import logging

        from fastslm.data.embeddings import sentence_embeddings

        logging.disable_progress_bar()
        embed = sentence_embeddings
    if holds_cuts(manifest):
        hidden_cuts = read_sounds(needles) if needles is not None else []
        cuts = compose_cuts(read_sounds(manifest), composing, needles=hidden_cuts, embed=embed)
        write_cuts(out, cuts)
        pieces, seconds = sum(len(sounding(cut)) for cut in cuts), sum(duration_of(cut) for cut in cuts)
    else:
        hidden = read_manifest(needles) if needles is not None else []
        rows = compose(read_manifest(manifest), composing, out.resolve().parent, needles=hidden, embed=embed)
        write_manifest(out, rows)
        pieces = sum(len(row["segments"]) for row in rows)
        seconds = sum(row["duration"] for row in rows)
    report = {"manifest": str(out), "compositions": count, "pieces": pieces, "hours": round(seconds / 3600, 4)}
    _say(report, f"{out}: {count} compositions of {pieces} pieces, {seconds / 3600:.2f} hours", as_json)


@app.command()
def synthesize(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST",
            help="JSONL with a clip a line, Lhotse cuts or a Shar folder; with --tts, text.",
            show_default=False,
        ),
    ],
    out: Out,
    tasks: Annotated[
        str | None, typer.Option(help="Which tasks to make, with commas; by default all.", show_default=False)
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            min=0, help="About each clip with text, by default 2; half about what is not said.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    tts: Annotated[
        bool, typer.Option("--tts", help="Speak text (JSONL with text, or a passage a line) instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make tasks with their answers of what a manifest knows of its clips, or, with --tts, clips of text."""
    refuse_overwriting(out, [manifest])
    if tts:
        if tasks is not None or questions is not None:
            raise OptionError("Tasks and questions are made of clips, and --tts only speaks text: leave them out.")
        _speak(manifest, out, seed, as_json)
        return
    from fastslm.data.conversion import write_cuts
    from fastslm.data.cut_audio import sounding
    from fastslm.data.cuts import holds_cuts, read_sounds
    from fastslm.data.manifest import read_manifest, write_manifest
    from fastslm.data.tasks import QUESTIONS, synthesize, synthesize_cuts, tally
    from fastslm.prompts import TASKS

    wanted = list(TASKS) if tasks is None else [task.strip() for task in tasks.split(",") if task.strip()]
    if not wanted:
        raise OptionError("No task is asked for: name some by --tasks, such as transcribe,ask.")
    count = QUESTIONS if questions is None else questions
    if holds_cuts(manifest):
        cuts = synthesize_cuts(read_sounds(manifest), wanted, seed, count)
        write_cuts(out, cuts)
        rows = [sounding(cut)[0][1]["custom"] for cut in cuts]
    else:
        rows = synthesize(read_manifest(manifest), out.resolve().parent, wanted, seed, count)
        write_manifest(out, rows)
    counts = tally(rows)
    parts = (
        f"{task} {sum(k.values())} ({', '.join(f'{n} {kind}' for kind, n in k.items())})" for task, k in counts.items()
    )
    _say(
        {"manifest": str(out), "rows": len(rows), "tasks": counts},
        f"{out}: {len(rows)} rows: {'; '.join(parts)}",
        as_json,
    )


@app.command()
def label(
    manifest: Manifest,
    out: Out,
    teacher: Annotated[str, typer.Option(help="The Whisper that is listened to.")] = "whisper-tiny.en",
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
) -> None:
    """Give texts the case and marks that Whisper hears, and clips without text what it hears in them (pseudo)."""
    refuse_overwriting(out, [manifest])
    from fastslm.data.manifest import read_manifest
    from fastslm.evaluation.baselines import load_whisper
    from fastslm.training.labels import label_clips, write_labelled
    from fastslm.writing import require_place

    require_place(out)
    clips = read_manifest(manifest)
    with progress_bar(manifest.name) as show:
        count = len(clips)
        labels = label_clips(
            clips, load_whisper(device, dtype, teacher), lambda done: show(done, count, f"{done} of {count} clips")
        )
    rows = write_labelled(clips, labels, out)
    pseudo = sum(kind == "pseudo" for _, kind in labels.values())
    _say(
        {"manifest": str(out), "rows": rows, "pseudo": pseudo},
        f"{out}: {rows} rows, {pseudo} of them pseudo",
        as_json,
    )


@app.command()
def mix(
    out: Out,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="MANIFEST=WEIGHT...", help="Manifests; a weight is 1 by default.", show_default=False),
    ],
    count: Annotated[
        int | None, typer.Option(min=1, help="How many rows; by default as many as fit without any twice.")
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, help="A later one goes on with what those before it left.")] = 0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Mix manifests by weights, in an order by seed, without any row twice before its manifest is used up."""
    from fastslm.data.manifest import write_manifest
    from fastslm.data.mixture import Source, mix

    named = [Source.named(text) for text in sources]
    refuse_overwriting(out, [source.path for source in named])
    rows = mix(named, out.resolve().parent, count, seed, epoch)
    write_manifest(out, rows)
    shares: dict[str, int] = {}
    for row in rows:
        shares[row["mixed_from"]] = shares.get(row["mixed_from"], 0) + 1
    parts = ", ".join(f"{name} {number}" for name, number in sorted(shares.items()))
    _say({"manifest": str(out), "rows": len(rows), "sources": shares}, f"{out}: {len(rows)} rows: {parts}", as_json)


def _speak(text: Path, out: Path, seed: int, as_json: bool) -> None:
    from time import monotonic

    from fastslm.data.shards import sharded_manifest
    from fastslm.data.speaking import read_passages, speak

    passages = read_passages(text)
    started = monotonic()
    with progress_bar(out.name) as show, sharded_manifest(out) as writer:
        count = len(passages)
        writer.rows += speak(passages, writer, seed, lambda done: show(done, count, f"{done} of {count} passages"))
    took = monotonic() - started
    seconds = sum(row["duration"] for row in writer.rows)
    report = {"manifest": str(out), "clips": len(writer.rows), "hours": round(seconds / 3600, 4)}
    report["speech_seconds_a_second"] = round(seconds / took, 1)
    said = f"{out}: {len(writer.rows)} clips, {seconds / 3600:.2f} hours, {seconds / took:.0f} s of speech a second"
    _say(report, said, as_json)


def _say(report: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        print_text(sentence)
