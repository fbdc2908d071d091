"""make demo: five public-domain recordings of a person reading, transcribed and compared with what was read.

    python examples/demo.py

The recordings (LibriVox, "Sense and Sensibility") come with their text in the source package of pocketsphinx 5.1.1. It
is fetched once through pip, checked against its sum, and only the recordings are kept, under the cache folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import jiwer

import fastslm
from fastslm.errors import FastSLMError, WeightsError
from fastslm.evaluation.metrics import normalize
from fastslm.weights import cache_dir

PACKAGE = "pocketsphinx==5.1.1"
SHA256 = "675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355"
INSIDE = "pocketsphinx-5.1.1/test/data/librivox/"
FRAME_LEVEL_TOKENS_A_WINDOW = 750  # an adapter of 25 tokens a second, for comparison


def recordings() -> list[tuple[Path, str]]:
    """The clips and their texts, fetched on the first call."""
    folder = cache_dir() / "demo" / "librivox"
    if not folder.is_dir():
        print(f"Fetching the recordings: {PACKAGE} (34 MB) from the package registry.", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _fetch(Path(scratch))
            os.replace(Path(scratch) / "kept", folder)
    texts = dict(
        reversed(line.rstrip(")\n").removeprefix("<s> ").rsplit(" </s> (", 1))  # "<s> text </s> (clip)"
        for line in (folder / "transcription").read_text(encoding="utf-8").splitlines()
    )
    return [(folder / f"{clip}.wav", text) for clip, text in sorted(texts.items())]


def _fetch(scratch: Path) -> None:
    # The build back end is installed already, so that pip only reads the package's name and version.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--dest", scratch, PACKAGE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise WeightsError(f"{PACKAGE} could not be fetched ({errors[-1]}); check the network and pip's configuration.")
    archive = next(scratch.glob("*.tar.gz"))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise WeightsError(f"{archive.name} has the sha256 {found}, not {SHA256}: use an index that has the original.")
    with tarfile.open(archive) as content:
        (scratch / "kept").mkdir()
        for member in content.getmembers():
            if member.isfile() and member.name.startswith(INSIDE):
                source = content.extractfile(member)
                assert source is not None
                with source, (scratch / "kept" / Path(member.name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)


def main() -> None:
    """Transcribe every clip and print reference, hypothesis, error rate, tokens and speed."""
    clips = recordings()
    model = fastslm.load()
    references, hypotheses, tokens, windows, seconds = [], [], 0, 0, 0.0
    started = time.perf_counter()
    for path, text in clips:
        result = model.transcribe(path)
        print(f"\n{path.name}  ({result.duration:.1f} s)")
        print(f"  read   {text.strip()}")
        print(f"  heard  {result.text}")
        references.append(normalize(text))
        hypotheses.append(normalize(result.text))
        tokens += result.usage.audio_tokens
        windows += result.usage.windows
        seconds += result.duration
        reader = result.usage.reader
    took = time.perf_counter() - started
    words = sum(len(reference.split()) for reference in references)
    print(f"\nwords wrong (WER)  {jiwer.wer(references, hypotheses):.1%} of {words} words")
    print(f"transcript by      {reader}")
    print(
        f"audio tokens       {tokens}, {tokens // windows} a window of 30 s; "
        f"a 25-a-second adapter needs {windows * FRAME_LEVEL_TOKENS_A_WINDOW}"
    )
    print(f"real-time factor   {took / seconds:.3f}  ({seconds:.0f} s of speech in {took:.1f} s)")


if __name__ == "__main__":
    try:
        main()
    except FastSLMError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
