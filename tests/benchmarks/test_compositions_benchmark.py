"""What the benchmark of compositions compares, and what it hears again."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rote_system import Rote

from fastslm.data.manifest import Clip, read_manifest
from fastslm.evaluation.metrics import error_rates

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compositions  # pyright: ignore[reportMissingImports]

    return compositions


@pytest.fixture
def clips(tmp_path: Path, encode: Callable[..., Path]) -> list[Clip]:
    """Twelve of 25 s by two speakers, in test.jsonl."""
    encode(tmp_path / "clip.wav", np.zeros(25 * 16_000, np.float32))
    rows = [
        {"id": str(i), "audio": "clip.wav", "duration": 25.0, "text": "a b c d", "speaker": f"{i % 2}"}
        for i in range(12)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_manifest(tmp_path / "test.jsonl")


def composition(name: str, *clips: str) -> Clip:
    segments = [
        {"start": 4.0 * i, "end": 4.0 * i + 3, "id": clip, "text": "a b c d", "audio": {"path": "clip.wav"}}
        for i, clip in enumerate(clips)
    ]
    row = {"id": name, "audio": None, "duration": 4.0 * len(clips), "segments": segments}
    return Clip.model_validate(row | {"text": " ".join(["a b c d"] * len(clips))})


def test_a_ratio_is_of_the_same_clips_as_often_as_they_occur(compositions: ModuleType) -> None:
    heard = error_rates(["a b c d", "a b c d", "a b c d"], ["a b c d", "a b c x", "x"]).clips
    whole = error_rates(["a b c d a b c d", "a b c d a b c d"], ["a b c x a b x x", "a b c d a b x x"]).clips
    rows = [composition("one", "0", "1"), composition("two", "1", "1")]
    found = compositions.compared(rows, dict(zip("012", heard, strict=True)), {"one": whole[0], "two": whole[1]})
    assert (found.pieces, found.words) == (4, 16)
    assert found.clips.value == pytest.approx(3 / 16)  # clip 1 three times; clip 2, all wrong, is in none
    assert found.compositions.value == pytest.approx(5 / 16)
    assert found.ratio.value == pytest.approx(5 / 3)
    # Drawn together: one alone has 3 errors for 1, two alone 2 for 2.
    assert found.ratio.interval == pytest.approx((1.0, 3.0))
    more = compositions.compared(rows[:1], dict(zip("012", heard, strict=True)), {"one": whole[0]})
    both = compositions.together([found, more])
    assert (both.pieces, both.words, len(both.ratio.clips)) == (6, 24, 3)
    assert both.ratio.value == pytest.approx((8 / 24) / (4 / 24))


@pytest.mark.parametrize("by", ["random", "speaker"])
def test_compositions_last_2_to_5_minutes_and_are_no_more_than_asked_for(
    compositions: ModuleType, clips: list[Clip], tmp_path: Path, by: str
) -> None:
    rows = compositions.composed(clips, by, tmp_path, 40)
    assert all(120 <= row["duration"] <= 300 for row in rows)
    assert len(rows) == 1  # 5 minutes are there
    assert len(compositions.composed(clips * 4, "random", tmp_path, 3)) == 3
    if by == "speaker":
        assert len({segment["speaker"] for row in rows for segment in row["segments"]}) == 1


def test_what_was_written_down_is_kept_for_the_same_manifest_and_model_only(
    compositions: ModuleType, clips: list[Clip], tmp_path: Path
) -> None:
    class Counted(Rote):
        heard = 0

        def reply(self, task, recordings):
            Counted.heard += 1
            return super().reply(task, recordings)

    system, manifest, kept = Counted(*["a b c"] * 12), tmp_path / "test.jsonl", tmp_path / "kept.jsonl"
    first = compositions.heard(system, manifest, kept)
    assert {name: own.errors for name, own in first.items()} == {str(i): 1 for i in range(12)}
    assert compositions.heard(system, manifest, kept) == first
    assert Counted.heard == 1
    manifest.write_text(manifest.read_text().replace('"a b c d"', '"a b"'))
    assert compositions.heard(system, manifest, kept)["0"].words == 2
    assert Counted.heard == 2
    system.facts = lambda task: {**Rote.facts(system, task), "fingerprint": "other"}
    compositions.heard(system, manifest, kept)
    assert Counted.heard == 3


def test_a_table_takes_the_place_of_the_one_before_and_leaves_the_page_around_it(
    compositions: ModuleType, tmp_path: Path
) -> None:
    page = tmp_path / "evaluation.md"
    start, end = compositions.MARKS
    page.write_text(f"# Evaluation\n\n{start}\n{end}\n\n## Else\n")
    for text in ("first", "second"):
        compositions.put(text, page)
    assert page.read_text() == f"# Evaluation\n\n{start}\nsecond\n{end}\n\n## Else\n"
