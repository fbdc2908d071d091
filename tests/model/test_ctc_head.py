"""The CTC head: what it hears, and how its characters become words with times."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fastslm.model.configuration import CTC_CHARACTERS, FastSLMConfig
from fastslm.model.ctc_head import (
    BLANK,
    CTCHead,
    ctc_ids,
    ctc_loss,
    ctc_steps_needed,
    ctc_text,
    greedy_text,
    greedy_words,
    unwritten,
)


def path_scores(path: str) -> torch.Tensor:
    """(len(path), classes): each step sure of its character, `_` for blank."""
    classes = torch.tensor([BLANK if c == "_" else CTC_CHARACTERS.index(c) + 1 for c in path])
    return torch.log_softmax(F.one_hot(classes, len(CTC_CHARACTERS) + 1) * 9.0, -1)


@pytest.fixture
def head(make_config: Callable[..., FastSLMConfig]) -> CTCHead:
    torch.manual_seed(0)
    return CTCHead(make_config(ctc_head=True, ctc_hidden_size=12, ctc_layers=2, ctc_steps_per_token=4)).eval()


@pytest.mark.parametrize(
    ("text", "reduced"),
    [
        ("Hello,  World!", "hello world"),
        ("it’s well-known", "it's well known"),
        ("Café\tnaïve\n", "cafe naive"),
        ("42 — …", ""),
        ("", ""),
    ],
)
def test_a_text_is_reduced_to_what_the_head_writes(text: str, reduced: str) -> None:
    assert ctc_text(text) == reduced


@given(st.text())
def test_reducing_twice_changes_nothing_and_leaves_only_known_characters(text: str) -> None:
    reduced = ctc_text(text)
    assert ctc_text(reduced) == reduced
    assert set(reduced) <= set(CTC_CHARACTERS)
    assert all(0 < i <= len(CTC_CHARACTERS) for i in ctc_ids(text))


def test_what_is_said_but_cannot_be_written_is_known() -> None:
    assert unwritten("Room 42, ångström: straße!") == "42ß"
    assert unwritten("it's well-known, café") == ""


def test_repeats_are_merged_blanks_dropped_and_words_split_at_spaces() -> None:
    (text,) = greedy_text(path_scores("__hh_eel_lo   _y_oo_u__")[None])
    assert text == "hello you"
    assert greedy_text(path_scores("____")[None]) == [""]
    assert greedy_text(path_scores(" a ")[None]) == ["a"]


def test_words_carry_the_times_of_their_first_and_last_letter() -> None:
    scores = path_scores("__ab_c__ _d__")
    first, second = greedy_words(scores, seconds=1.3)
    assert (first.word, second.word) == ("abc", "d")
    assert (first.start, first.end) == pytest.approx((0.2, 0.6))
    assert (second.start, second.end) == pytest.approx((1.0, 1.1))
    assert first.log_probability == pytest.approx(float(scores.max(-1).values[0]), rel=1e-3)


def test_the_loss_is_torchs_own_of_each_sample_per_character() -> None:
    texts = ["hello world, this is long enough", "hi", ""]
    scores = torch.randn(3, 60, len(CTC_CHARACTERS) + 1, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = []
    for row, text in zip(scores, texts, strict=True):
        ids = torch.tensor([ctc_ids(text)], dtype=torch.long)
        one = F.ctc_loss(row[:, None], ids, torch.tensor([60]), torch.tensor([ids.shape[1]]), reduction="sum")
        expected.append(one / max(20, ids.shape[1]))
    torch.testing.assert_close(ctc_loss(scores, texts), torch.stack(expected).mean())


@given(st.text(alphabet="ab ", min_size=1, max_size=12))
def test_a_text_that_needs_one_step_more_than_there_are_teaches_nothing(text: str) -> None:
    needed = ctc_steps_needed(text)
    scores = torch.zeros(1, max(needed, 1), len(CTC_CHARACTERS) + 1).log_softmax(-1)
    if not ctc_text(text):
        assert needed == 0
        return
    assert float(ctc_loss(scores, [text])) > 0
    if needed > 1:
        short = scores[:, 1:].clone().requires_grad_()
        loss = ctc_loss(short, [text])
        loss.backward()
        assert float(loss.detach()) == 0
        assert short.grad is not None
        assert not short.grad.any()


def test_the_context_blocks_start_as_the_identity(head: CTCHead) -> None:
    tokens = torch.randn(2, 5, 64)
    with_context = head(tokens)
    for block in head.context:
        steps = torch.randn(1, 9, 12)
        assert torch.equal(block(steps), steps)
    head.context = torch.nn.ModuleList()
    torch.testing.assert_close(head(tokens), with_context)


def test_scores_are_log_probabilities_one_row_a_step_in_float32(head: CTCHead) -> None:
    scores = head(torch.randn(2, 5, 64))
    assert scores.shape == (2, 20, len(CTC_CHARACTERS) + 1)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 20))
    assert head.bfloat16()(torch.randn(2, 5, 64).bfloat16()).dtype == torch.float32


@torch.no_grad()
def test_a_window_reads_the_same_alone_and_among_others(head: CTCHead) -> None:
    for parameter in head.parameters():
        parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    tokens = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2))
    together = head(tokens)
    for index in range(3):
        torch.testing.assert_close(head(tokens[index : index + 1])[0], together[index], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_look_is_heard_at_its_own_time(head: CTCHead) -> None:
    tokens = torch.zeros(1, 5, 64)
    still = head(tokens)
    tokens[0, 3, 16:32] = 3.0  # look 1 of token 3: step 13
    changed = (head(tokens) - still).abs().amax(-1)[0]
    reach = 4 + 2
    assert changed[13] > 1e-3
    assert not changed[: 13 - reach].any()
    assert not changed[13 + reach + 1 :].any()


def test_looks_that_do_not_share_the_width_are_refused(make_config: Callable[..., FastSLMConfig]) -> None:
    with pytest.raises(ValueError, match="must be even and divide the width 64"):
        CTCHead(make_config(ctc_head=True, ctc_steps_per_token=24))
