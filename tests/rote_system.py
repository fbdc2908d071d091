"""A system that can be measured and hears nothing: it says what it was told to."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastslm.evaluation.systems import Heard, Reply


class Rote:
    """Says what it was told to, request after request; what ends in " -" was cut."""

    tasks = ("transcribe", "translate", "summarize", "ask")

    def __init__(self, *texts: str):
        self.texts = texts
        self.asked: list[dict[str, Any]] = []

    def facts(self, task: str) -> dict[str, Any]:
        return {"system": "rote", "model": "rote", "fingerprint": None, "reader": "rote"}

    def reply(self, task: str, recordings: Iterable[Heard]) -> Iterator[list[Reply]]:
        texts = iter(self.texts)
        for heard in recordings:
            self.asked += heard.requests
            own = [next(texts) for _ in heard.requests]
            yield [Reply(text, "length" if text.endswith(" -") else "stop") for text in own]
