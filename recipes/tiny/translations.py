"""Texts with their French translations → manifests of text alone, for the part of stage 3 that teaches to translate.

    python recipes/tiny/translations.py MULTI30K TATOEBA cache/translations

MULTI30K is a clone of multi30k/dataset (captions of pictures in English, translated by people: 29,000 to learn from,
1,014 to validate, 1,000 of `test_2017_flickr` to test). TATOEBA is a file of `English<tab>French` lines, such as
`fra.txt` of DevHunterYZ/Neural-Machine-Translation (tatoeba.org, CC BY 2.0 FR: short sentences of every day).

Writes train, validation and test, and test-said, the first 200 test rows to be spoken by --tts. Training
rows join sentences to a drawn length, since a window of speech rarely holds one alone, and an empty place costs as much
as a full one.
"""

import argparse
import gzip
import io
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from fastslm.data.manifest import write_manifest

LANGUAGE = "fr"
# Letters a second of clear speech: how long a text would take to say, and at most a window.
LETTERS_A_SECOND, LONGEST = 15.0, 29.5
# Of a training row: from a short sentence alone to about a token for each of 50 places.
LETTERS = (20, 220)
TEST_SPOKEN = 200

Pair = tuple[str, str]


def multi30k(clone: Path, split: str) -> list[Pair]:
    """Pairs of a split: train, val, or the name of a test set."""

    def file(path: str) -> bytes:
        return subprocess.run(["git", "-C", clone, "show", f"HEAD:data/task1/{path}"], check=True, stdout=-1).stdout

    def lines(language: str) -> list[str]:
        if split in ("train", "val"):
            content = gzip.decompress(file(f"raw/{split}.{language}.gz"))
        else:
            with tarfile.open(fileobj=io.BytesIO(file("multi30k_test_sets_d3ec2a38.tar.gz"))) as sets:
                member = sets.extractfile(f"./{split}.{language}")
                assert member is not None
                content = member.read()
        return [line.strip() for line in content.decode().strip().split("\n")]

    return list(zip(lines("en"), lines(LANGUAGE), strict=True))


def tatoeba(file: Path) -> list[Pair]:
    """The first translation of each sentence."""
    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        english, french, *_ = [*line.split("\t"), "", ""]
        # The last line of a file that was cut short has no end.
        if french.strip() and french.strip()[-1] in ".!?»":
            found.setdefault(english.strip(), french.strip())
    return list(found.items())


def joined(pairs: Sequence[Pair], rng: Random) -> Iterator[Pair]:
    """Each pair once, with as many others as a drawn length has room for."""
    row: list[Pair] = []
    room = rng.randint(*LETTERS)
    for pair in rng.sample(pairs, len(pairs)):
        if row and sum(len(own) + 1 for own, _ in row) + len(pair[0]) > room:
            yield " ".join(own for own, _ in row), " ".join(other for _, other in row)
            row, room = [], rng.randint(*LETTERS)
        row.append(pair)
    yield " ".join(own for own, _ in row), " ".join(other for _, other in row)


def row(name: str, pair: Pair) -> dict[str, object]:
    """A manifest's row of text alone."""
    english, french = pair
    seconds = min(len(english) / LETTERS_A_SECOND + 0.5, LONGEST)
    return {
        "id": name,
        "audio": None,
        "duration": round(seconds, 2),
        "text": english,
        "language": "en",
        "translation": french,
        "target_language": LANGUAGE,
        "label_kind": "human",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("multi30k", type=Path)
    parser.add_argument("tatoeba", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = [*multi30k(given.multi30k, "train"), *tatoeba(given.tatoeba)]
    sets = {
        "train": list(joined(pairs, Random(1))),
        "validation": multi30k(given.multi30k, "val"),
        "test": multi30k(given.multi30k, "test_2017_flickr"),
    }
    for name, found in sets.items():
        count = write_manifest(given.out / f"{name}.jsonl", (row(f"{name}-{i:05d}", p) for i, p in enumerate(found)))
        print(f"{given.out / name}.jsonl: {count} rows")
    # To be spoken, with their translations.
    rows = [row(f"said-{i:05d}", pair) for i, pair in enumerate(sets["test"][:TEST_SPOKEN])]
    spoken = [{key: own[key] for key in ("id", "text", "translation", "target_language")} for own in rows]
    write_manifest(given.out / "test-said.jsonl", spoken)


if __name__ == "__main__":
    main()
