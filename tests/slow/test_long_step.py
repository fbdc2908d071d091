"""A training step of 15 minutes of speech and its transcript fits the memory that is promised, at tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "long_step.py"


@pytest.mark.slow
def test_1500_speech_and_3000_text_tokens_train_in_24_gib_and_checkpointing_spares_a_third_of_what_a_step_adds() -> (
    None
):
    done = subprocess.run([sys.executable, BENCHMARK], check=True, stdout=subprocess.PIPE, text=True)
    on, off = map(json.loads, done.stdout.splitlines())
    assert (on["speech_tokens"], on["text_tokens"]) == (off["speech_tokens"], off["text_tokens"]) == (1500, 3000)
    assert on["peak_gib"] < off["peak_gib"] < 24
    # What is left are logits: 3,000 places of 49,000 words each.
    assert on["added_gib"] < 2 / 3 * off["added_gib"]
    # bfloat16 rounds alike: the layers compute the same twice.
    assert on["loss"] == pytest.approx(off["loss"], rel=1e-3)
