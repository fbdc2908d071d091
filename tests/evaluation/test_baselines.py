"""The cascade with a tiny language model and a listener that answers by rote."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from tiny_fastslm import noise, write_bases
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastslm.evaluation.baselines import CascadeSystem
from fastslm.evaluation.systems import Heard
from fastslm.model.processing import DEFAULT_CHAT_TEMPLATE


class Listener:
    """Hears the same order every time."""

    name = "listener"

    def facts(self, task: str) -> dict[str, Any]:
        return {"system": "listener", "model": self.name, "reader": "rote"}

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        for _ in waveforms:
            yield "a large latte please", "stop"


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> CascadeSystem:
    _, llama = write_bases(tmp_path_factory.mktemp("bases"))
    tokenizer = AutoTokenizer.from_pretrained(llama, chat_template=DEFAULT_CHAT_TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(llama)
    return CascadeSystem(Listener(), model, tokenizer, max_new_tokens=8, name="tiny")  # type: ignore[arg-type]


def test_it_reads_the_transcript_and_the_question(cascade: CascadeSystem) -> None:
    prompt = cascade._prompt("ask", "a large latte please", question="What size is the drink?")
    assert "a large latte please" in prompt
    assert "What size is the drink?" in prompt
    assert "not mentioned" in prompt
    assert "into Korean" in cascade._prompt("translate", "a large latte please", to="ko")


def test_an_answer_does_not_depend_on_what_is_asked_beside_it(cascade: CascadeSystem) -> None:
    questions = [{"question": q} for q in ("What size is the drink?", "Who?", "Is there milk in it or not at all?")]
    (together,) = cascade.reply("ask", [Heard(noise(1.0), questions)])
    alone = [reply for q in questions for reply in next(cascade.reply("ask", [Heard(noise(1.0), [q])]))]
    assert together == alone
    assert any(reply.text for reply in together)


def test_it_says_what_it_is_made_of(cascade: CascadeSystem) -> None:
    facts = cascade.facts("ask")
    assert (facts["system"], facts["model"]) == ("cascade", "listener, then tiny")
    assert facts["max_new_tokens"] == 8
