"""What recipes/paper/corpora.py makes of corpora as lhotse prepares them."""

import gzip
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fastslm.data.cuts import read_rows
from fastslm.errors import ManifestError

SCRIPT = Path(__file__).parents[2] / "recipes" / "paper" / "corpora.py"
spec = importlib.util.spec_from_file_location("paper_corpora", SCRIPT)
assert spec
assert spec.loader
corpora = importlib.util.module_from_spec(spec)
spec.loader.exec_module(corpora)


@pytest.fixture
def cuts(tmp_path: Path, encode: Any, tone: Any) -> Any:
    """`cuts((id, text, custom), …)`: a file of cuts of one second each."""
    encode(tmp_path / "a.wav", tone(1.0))

    def write(*said: tuple[str, str, dict[str, Any]]) -> Path:
        lines = []
        for name, text, custom in said:
            source = {"type": "file", "channels": [0], "source": "a.wav"}
            recording = {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
            supervision = {"id": name, "recording_id": name, "start": 0.0, "duration": 1.0, "channel": 0}
            supervision |= {"text": text, "language": "ko_kr", "custom": custom}
            cut = {"id": f"cut-{name}", "start": 0.0, "duration": 1.0, "channel": 0, "supervisions": [supervision]}
            lines.append(json.dumps(cut | {"recording": recording | {"channel_ids": [0]}, "type": "MonoCut"}))
        (tmp_path / "cuts.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path / "cuts.jsonl"

    return write


def run(*arguments: object) -> None:
    before = sys.argv
    sys.argv = ["corpora.py", *map(str, arguments)]
    try:
        corpora.main()
    finally:
        sys.argv = before


@pytest.mark.parametrize(
    ("text", "custom", "wanted"),
    [
        ("AS YOU KNOW <COMMA> I DO <PERIOD> DO YOU <QUESTIONMARK>", {}, "As you know, I do. Do you?"),
        ("MISTER QUILTER", {}, "Mister quilter"),
        ("Mr. Quilter, I believe.", {}, "Mr. Quilter, I believe."),
        ("hello mr president", {"orig_text": "Hello, Mr. President."}, "Hello, Mr. President."),
        ("안녕하세요", {"raw_text": "안녕하세요."}, "안녕하세요."),
        ("<MUSIC>", {}, None),
    ],
)
def test_texts_are_as_people_write_them(text: str, custom: dict[str, Any], wanted: str | None) -> None:
    assert corpora.as_written(text, custom) == wanted


def test_cuts_without_words_are_left_out(cuts: Any, tmp_path: Path, capsys: Any) -> None:
    run("texts", cuts(("a", "HELLO <COMMA> YOU", {}), ("b", "<NOISE>", {})), tmp_path / "out.jsonl.gz")
    assert capsys.readouterr().out == f"{tmp_path / 'out.jsonl.gz'}: 1 cuts\n"
    (row,) = read_rows(tmp_path / "out.jsonl.gz").epoch([0], 0)
    assert (row.answer, row.language) == ("Hello, you", "ko")


def test_sentences_of_fleurs_are_joined_across_languages(cuts: Any, tmp_path: Path) -> None:
    english = [{"id": f"{n}_1_x", "text": "hi there", "custom": {"raw_text": f"Hi {n}."}} for n in (7, 8)]
    with gzip.open(tmp_path / "en.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in english))
    spoken = cuts(("7_2_a", "안녕", {}), ("9_1_b", "네", {}))
    run("fleurs", spoken, tmp_path / "en.jsonl.gz", tmp_path / "out.jsonl", "--to", "English")
    (row,) = read_rows(tmp_path / "out.jsonl", "translate").epoch([0], 0)
    assert (row.task, row.answer, row.language, row.text) == ("translate", "Hi 7.", "en", "안녕")


def test_translations_of_covost_are_joined_by_file(cuts: Any, tmp_path: Path) -> None:
    table = "path\tsentence\ttranslation\tclient_id\nclip_1.mp3\tHello\tHallo\tx\n"
    (tmp_path / "t.tsv").write_text(table)
    run(
        "covost",
        cuts(("clip_1", "Hello", {}), ("clip_2", "x", {})),
        tmp_path / "t.tsv",
        tmp_path / "out.jsonl",
        "--to",
        "de",
    )
    (row,) = read_rows(tmp_path / "out.jsonl", "translate").epoch([0], 0)
    assert (row.answer, row.language) == ("Hallo", "de")
    with pytest.raises(ManifestError, match="no cut has a translation there"):
        run("covost", cuts(("other", "x", {})), tmp_path / "t.tsv", tmp_path / "none.jsonl", "--to", "de")
    assert not (tmp_path / "none.jsonl").exists()


def test_every_corpus_of_the_readme_is_one_that_lhotse_prepares_or_is_said_to_be_none() -> None:
    page = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ") and "corpus" not in line]
    recipes = {row[4].strip().strip("`*") for row in rows}
    assert "none" in recipes
    asked_for = set(re.findall(r"^lhotse prepare (\S+)", page, re.MULTILINE))
    assert len(asked_for) == 10
    assert asked_for <= recipes
    for name in recipes - {"none"}:
        assert importlib.util.find_spec(f"lhotse.bin.modes.recipes.{name}"), name
    for name in ("covost2", "covost", "zeroth"):
        assert not importlib.util.find_spec(f"lhotse.bin.modes.recipes.{name}"), "say how it is prepared"
