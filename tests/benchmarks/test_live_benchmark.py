"""What the benchmark of live audio counts, and what it writes."""

from pathlib import Path
from types import ModuleType

import pytest

from fastslm.longform.live import LiveText
from fastslm.longform.results import Segment, Word

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import live  # pyright: ignore[reportMissingImports]

    return live


def _text(words: list[tuple[str, float]], final: bool, start: float = 0.0) -> LiveText:
    """A text of words with their ends."""
    told = tuple(Word(text, end - 0.2, end) for text, end in words)
    return LiveText(Segment(start, start + 30, " ".join(word.text for word in told), told), final, 0.0, 0.25)


def test_a_words_delay_is_from_its_end_to_the_first_text_that_holds_it_there_and_to_the_final_one(live) -> None:
    texts = [
        (3.0, _text([("the", 1.0), ("hat", 2.0)], final=False)),
        (5.0, _text([("the", 1.1), ("cat", 2.0), ("the", 4.0)], final=False)),
        (31.0, _text([("the", 1.0), ("cat", 2.0), ("the", 4.0)], final=True)),
        (33.0, _text([("the", 31.5)], final=False, start=30.0)),
    ]
    first, final = live.delays(texts)
    assert first == pytest.approx([2.0, 3.0, 1.0])  # "hat" was no "cat", and the second "the" is not the first
    assert final == pytest.approx([30.0, 29.0, 27.0])  # what is not final yet is not counted


@pytest.mark.parametrize(("load", "provisional"), [(0.1, False), (1.3, True)])
def test_figures_measured_beside_other_work_say_that_they_are_provisional(live, load: float, provisional: bool) -> None:
    row = {"update": 2.0, "texts": 3, "first": [1.0, 2.0, 3.0], "final": [10.0], "reading": [0.5, 0.7]}
    text = live.section([row], 60.0, load)
    assert "| 2 s | 3 | 1 | 2.0 s | 2.9 s | 10.0 s | 10.0 s | 0.60 s |" in text
    assert ("provisional" in text) is provisional
    assert f"load of the machine before it {load:.1f}" in text


def test_a_section_takes_the_place_of_the_one_before_and_leaves_the_page_around_it(live, tmp_path, monkeypatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# Benchmarks\n\n{live.START}\n{live.END}\n\n## Else\n")
    monkeypatch.setattr(live, "PAGE", page)
    for text in ("first", "second"):
        live.write_page(text)
    assert page.read_text() == f"# Benchmarks\n\n{live.START}\nsecond\n{live.END}\n\n## Else\n"
