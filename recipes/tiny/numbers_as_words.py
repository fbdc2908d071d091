"""Digits as they are spoken in English, for texts that a voice reads and a recogniser writes.

    "On 3 May 1906, 1,250 people paid $5.50." → "On three May nineteen oh six, one thousand, two hundred and fifty
                                                 people paid five dollars fifty."

Needs num2words, which only this recipe uses (pip install num2words). A text without digits needs nothing.
"""

import re
from functools import cache

from fastslm.errors import OptionError

_CURRENCIES = {"$": "dollar", "£": "pound", "€": "euro"}
_MONEY = re.compile(r"([$£€])\s?(\d+(?:,\d{3})*)(?:\.(\d+))?( (?:thousand|million|billion|trillion))?\b")


def spoken(text: str) -> str:
    """`text` without digits: years, times, money, ranges and ordinals are read as people read them.

    Raises:
        OptionError: there are digits, and num2words is not installed.
    """
    if not re.search(r"\d", text):
        return " ".join(text.split())
    text = _MONEY.sub(_money, text)
    text = re.sub(r"(\d)\s?%", r"\1 percent", text)
    text = re.sub(r"(?<![\w,.-])[-−](?=\d)", "minus ", text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: _words(int(m[1]), "ordinal"), text)
    text = re.sub(r"\b(\d+)s\b", lambda m: _plural(_number(m[1])), text)
    text = re.sub(r"(?<![\d-])(\d+)[-–](\d+)(?![\d-])", r"\1 to \2", text)
    text = re.sub(r"\b(\d{1,2}):(\d{2})\b", lambda m: _time(int(m[1]), int(m[2])), text)
    text = re.sub(r"\b(\d+(?:,\d{3})*)\.(\d+)\b", lambda m: f"{_count(m[1])} point {_digits(m[2])}", text)
    text = re.sub(r"\b\d{1,3}(?:,\d{3})+\b", lambda m: _count(m[0]), text)
    text = re.sub(r"(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])", " ", text)
    text = re.sub(r"\d+", lambda m: _number(m[0]), text)
    return " ".join(text.split())


def _money(match: re.Match[str]) -> str:
    sign, whole, part, scale = match.groups()
    name = _CURRENCIES[sign]
    if scale or (part and len(part) != 2):
        return f"{whole}{'.' + part if part else ''}{scale or ''} {name}s"
    name += "" if whole == "1" else "s"
    return f"{whole} {name}" + (f" {int(part)}" if part and int(part) else "")


def _number(digits: str) -> str:
    """A number without commas: a year if it may be one, a code digit by digit, or else a count."""
    if len(digits) > 9 or (len(digits) > 1 and digits[0] == "0"):
        return _digits(digits)
    number = int(digits)
    if not (1100 <= number <= 1999 or 2010 <= number <= 2099):
        return _words(number)
    century, rest = divmod(number, 100)
    return f"{_words(century)} {'hundred' if rest == 0 else _minutes(rest)}"


def _time(hour: int, minute: int) -> str:
    return f"{_words(hour)} {_minutes(minute)}" if minute else f"{_words(hour)} o'clock"


def _minutes(number: int) -> str:
    return f"oh {_words(number)}" if number < 10 else _words(number)


def _count(digits: str) -> str:
    return _words(int(digits.replace(",", "")))


def _digits(digits: str) -> str:
    return " ".join(_words(int(digit)) for digit in digits)


def _plural(words: str) -> str:
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")


@cache
def _words(number: int, form: str = "cardinal") -> str:
    try:
        from num2words import num2words
    except ImportError:
        raise OptionError(
            "Digits are spoken by the package num2words, which is missing: pip install num2words."
        ) from None
    return num2words(number, to=form)
