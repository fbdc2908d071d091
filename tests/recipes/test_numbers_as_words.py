"""Digits as they are spoken."""

import sys

import pytest
from numbers_as_words import _words, spoken

from fastslm.errors import OptionError


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("In 1906 and 2015.", "In nineteen oh six and twenty fifteen."),
        ("the 1900s, the 1960s and the 2000s", "the nineteen hundreds, the nineteen sixties and the two thousands"),
        ("1,234,567 stars", "one million, two hundred and thirty-four thousand, five hundred and sixty-seven stars"),
        ("It costs $5.50, or £1.", "It costs five dollars fifty, or one pound."),
        ("$2.5 million", "two point five million dollars"),
        ("at 10:05, not 7:00", "at ten oh five, not seven o'clock"),
        ("the 21st of May", "the twenty-first of May"),
        ("10-20 men, 7 %", "ten to twenty men, seven percent"),
        ("-3.25 degrees", "minus three point two five degrees"),
        ("agent 007, 5km away", "agent zero zero seven, five km away"),
    ],
)
def test_digits_are_read_as_people_read_them(written: str, said: str) -> None:
    pytest.importorskip("num2words")
    assert spoken(written) == said


def test_a_text_without_digits_needs_no_package_and_one_with_digits_says_which(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    _words.cache_clear()
    assert spoken("No  digits here.") == "No digits here."
    with pytest.raises(OptionError, match="pip install num2words"):
        spoken("But 3 here.")
