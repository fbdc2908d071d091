"""Summaries by counting words: the lead first, nothing written anew, no more than a quarter."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.data.tasks import SUMMARY_WORDS, content_words, extractive_summary, keywords, sentences_of

WHALES = [
    "The expedition set out to count whales in the northern sea.",
    "The weather was mild.",
    "Whales were seen on every day of the expedition.",
    "Somebody lost a hat.",
    "In the northern sea whales gather where the food is.",
    "Lunch was served late, with bread and a little butter on the side.",
    "At last they went home again, tired and happy after so many weeks.",
]


def test_the_lead_comes_first_then_what_the_whole_is_about() -> None:
    summary = extractive_summary(WHALES)
    assert summary is not None
    assert summary == f"{WHALES[0]} {WHALES[4]}"
    assert keywords(" ".join(WHALES), 3) == ["expedition", "whales", "northern"]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["red", "blue", "green", "ship", "house"]), min_size=1, max_size=30), max_size=20)
)
def test_a_summary_is_sentences_of_the_text_in_their_order_and_fewer(words: list[list[str]]) -> None:
    sentences = [f"{' '.join(sentence)} {index:02d}" for index, sentence in enumerate(words)]
    summary = extractive_summary(sentences)
    total = sum(len(sentence.split()) for sentence in sentences)
    if summary is None:
        return
    chosen = [sentence for sentence in sentences if sentence in summary]
    assert summary == " ".join(chosen)
    assert chosen[0] == sentences[0]
    assert len(chosen) < len(sentences)
    lead = len(sentences[0].split())
    assert len(summary.split()) <= max(lead, min(SUMMARY_WORDS, total / 3))


def test_what_is_too_short_has_no_summary() -> None:
    assert extractive_summary(["Hello there.", "How are you?", "Well."]) is None
    assert extractive_summary([]) is None
    assert keywords("of the and", 5) == []


def test_sentences_come_from_marks_then_from_segments_and_are_never_guessed() -> None:
    assert sentences_of("One is here. Two is there! Three?") == ["One is here.", "Two is there!", "Three?"]
    assert sentences_of("one is here two is there", ["one is here", "two is there"]) == ["one is here", "two is there"]
    assert sentences_of("one is here two is there") == []


def test_common_words_are_no_key_words() -> None:
    assert content_words("The ship's captain was on the Ship, and it sank.") == ["ship's", "captain", "ship", "sank"]
