"""What lhotse prepare leaves open: texts as people write them, and translations. Cuts in, cuts out.

    python recipes/paper/corpora.py texts gigaspeech_cuts_XL.jsonl.gz gigaspeech.jsonl.gz
    python recipes/paper/corpora.py fleurs ko.jsonl.gz fleurs-en_us_supervisions_train.jsonl.gz ko-en.jsonl.gz --to en
    python recipes/paper/corpora.py covost cv-en.jsonl.gz covost_v2.en_de.train.tsv en-de.jsonl.gz --to de

`texts` writes GigaSpeech's spoken marks (`<COMMA>`) as marks, takes the original texts where a corpus keeps them beside
normalised ones (VoxPopuli, FLEURS), puts capitals without any small letter into small letters, and leaves out cuts in
which nobody speaks words (`<MUSIC>`). `fleurs` and `covost` keep the cuts that have a translation, and add it.
"""

import argparse
import csv
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastslm.data.conversion import write_cuts
from fastslm.data.cuts import CutRows
from fastslm.errors import ManifestError
from fastslm.prompts import language_code

MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_WORDS = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")
# Where corpora keep what was written before it was normalised.
ORIGINALS = ("orig_text", "raw_text")


def as_written(text: str, custom: dict[str, Any] | None = None) -> str | None:
    """The text of a supervision as people write it; `None` where no words are spoken."""
    if any(tag in text for tag in NO_WORDS):
        return None
    original = next((custom[key] for key in ORIGINALS if custom and custom.get(key)), None)
    if original:
        return str(original).strip()
    for tag, mark in MARKS.items():
        text = re.sub(rf"\s*{tag}", mark, text)
    text = " ".join(text.split())
    if text.isupper():
        text = re.sub(r"(^|[.?!] )(\w)", lambda found: found[1] + found[2].upper(), text.lower())
        text = re.sub(r"\bi\b", "I", text)
    return text


def with_texts(cuts: Path) -> Iterator[dict[str, Any]]:
    """The cuts with their texts as written."""
    for sound in CutRows(cuts, lenient=True).sounds():
        cut = sound.by_reference()
        texts = [as_written(own.get("text") or "", own.get("custom")) for own in cut["supervisions"]]
        if texts and all(texts):
            for supervision, text in zip(cut["supervisions"], texts, strict=True):
                supervision["text"] = text
            yield cut


def translated(cuts: Path, translations: dict[str, str], to: str, key: Any) -> Iterator[dict[str, Any]]:
    """The cuts that have a translation, with it. `key` is what a cut is called among them.

    Raises:
        ManifestError: none has.
    """
    found = 0
    for sound in CutRows(cuts, lenient=True).sounds():
        cut = sound.by_reference()
        translation = translations.get(key(cut))
        if translation:
            found += 1
            cut["custom"] = (cut.get("custom") or {}) | {"translation": translation, "target_language": to}
            yield cut
    if not found:
        raise ManifestError(f"{cuts}: no cut has a translation there; give the cuts and translations of one corpus.")


def prompt_of(supervision: str) -> str:
    """The number of the sentence, which is one in all of FLEURS' languages."""
    return supervision.split("_")[0]


def fleurs_texts(supervisions: Path) -> dict[str, str]:
    """The texts of another language's supervisions, by their sentences."""
    with gzip.open(supervisions, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {prompt_of(row["id"]): as_written(row["text"], row.get("custom")) or "" for row in rows}


def covost_texts(table: Path) -> dict[str, str]:
    """The translations of CoVoST 2, by the names of Common Voice's files."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {Path(row["path"]).stem: row["translation"].strip().strip('"') for row in rows}


def main() -> None:
    """Write the cuts."""
    parser = argparse.ArgumentParser(description="Texts as written, and translations.")
    parser.add_argument("kind", choices=("texts", "fleurs", "covost"))
    parser.add_argument("cuts", type=Path, help="a file of cuts, or a Shar folder")
    parser.add_argument("files", type=Path, nargs="+", help="translations, but for texts; then the cuts to write")
    parser.add_argument("--to", help="the language of the translations")
    given = parser.parse_args()
    if len(given.files) != 1 + (given.kind != "texts") or (given.to is None) != (given.kind == "texts"):
        parser.error(f"{given.kind} takes {'CUTS OUT' if given.kind == 'texts' else 'CUTS TRANSLATIONS OUT --to CODE'}")
    out = given.files[-1]
    if given.kind == "texts":
        cuts = with_texts(given.cuts)
    else:
        to = language_code(given.to)
        if given.kind == "fleurs":
            texts, key = fleurs_texts(given.files[0]), lambda cut: prompt_of(cut["supervisions"][0]["id"])
        else:
            texts, key = covost_texts(given.files[0]), lambda cut: cut["recording"]["id"]
        cuts = translated(given.cuts, texts, to, key)
    print(f"{out}: {write_cuts(out, cuts)} cuts")


if __name__ == "__main__":
    main()
