"""How far word times are from a forced alignment's: start and end of every word that was read right, in milliseconds.

    python benchmarks/word_times.py [--manifest MANIFEST] [--model fastslm-tiny] [--decoder auto] [--clips 60]

MANIFEST has `words`, a list of [start, end, word] for each clip; by default LibriSpeech's that lies in ../shared/data
beside the repository. Words are matched by aligning the two texts, case and marks aside. Prints Markdown.
"""

import argparse
import statistics
from pathlib import Path

import jiwer
import numpy as np

import fastslm
from fastslm.data.manifest import read_manifest
from fastslm.longform.results import Transcript, Word

MANIFEST = Path(__file__).parents[2] / "shared" / "data" / "librispeech" / "aligned.jsonl"


def bare(word: str) -> str:
    """A word without case and marks."""
    return "".join(letter for letter in word.lower() if letter.isalnum())


def matched(known: list[Word], found: list[Word]) -> list[tuple[Word, Word]]:
    """Pairs of the same word in the best alignment of the two texts."""
    left = [word for word in known if bare(word.text)]
    right = [word for word in found if bare(word.text)]
    if not left or not right:
        return []
    texts = [" ".join(bare(word.text) for word in words) for words in (left, right)]
    pairs = []
    for chunk in jiwer.process_words(*texts).alignments[0]:
        if chunk.type == "equal":
            size = chunk.ref_end_idx - chunk.ref_start_idx
            pairs += [(left[chunk.ref_start_idx + i], right[chunk.hyp_start_idx + i]) for i in range(size)]
    return pairs


def words_of(transcript: Transcript) -> list[Word]:
    """All words of a transcript with their times."""
    return [word for segment in transcript.segments for word in segment.words]


def row(what: str, errors: list[float]) -> str:
    """A line of the table: of errors in seconds, their size and which way they lean, in milliseconds."""
    sizes = [abs(error) for error in errors]
    figures = (statistics.median(sizes), float(np.percentile(sizes, 90)), statistics.median(errors))
    return f"| {what} | " + " | ".join(f"{1000 * figure:.0f}" for figure in figures) + " |"


def main() -> None:
    """Transcribe, match, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    parser.add_argument("--model", default="fastslm-tiny")
    parser.add_argument("--decoder", default="auto", choices=("auto", "ctc", "whisper"))
    parser.add_argument("--clips", type=int, default=60)
    options = parser.parse_args()
    clips = [clip for clip in read_manifest(options.manifest) if clip.words][: options.clips]
    model = fastslm.load(options.model)
    known, pairs = 0, []
    for clip in clips:
        words = [Word(text, start, end) for start, end, text in clip.words or ()]
        known += len(words)
        pairs += matched(words, words_of(model.transcribe(clip.read(), decoder=options.decoder)))
    if not pairs:
        raise SystemExit(
            f"None of the {known} words of {len(clips)} clips was read right: give another model or decoder."
        )
    print(f"{options.model}, decoder {options.decoder}: {len(pairs)} of {known} words in {len(clips)} clips matched.\n")
    print("| error, ms | median | 90th percentile | median with its sign |\n| --- | --- | --- | --- |")
    print(row("start of a word", [ours.start - theirs.start for theirs, ours in pairs]))
    print(row("end of a word", [ours.end - theirs.end for theirs, ours in pairs]))


if __name__ == "__main__":
    main()
