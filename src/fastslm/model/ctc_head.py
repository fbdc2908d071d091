"""A small CTC head that reads the speech tokens as characters at 40 Hz, with their times (ours).

It says what the tokens hold, without the language model: the 384 channels of a token are 24 looks of 16 channels in
order of time (the tied start), so 50 tokens are a sequence of 1200 vectors, one for every 25 ms.
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from fastslm.model.configuration import CTC_CHARACTERS, FastSLMConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

BLANK = 0
SPACE = CTC_CHARACTERS.index(" ") + 1
HEARING_KERNELS = (9, 5)
# Steps that share one step of context.
POOL = 2
CONTEXT_KERNEL = 15
EXPANSION = 3


def ctc_text(text: str) -> str:
    """Reduce a text to what the head can write: lower-case letters, apostrophe, single spaces."""
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'").replace("-", " ")).lower()
    return " ".join(re.sub(r"[^a-z' ]", "", re.sub(r"\s", " ", text)).split())


def ctc_ids(text: str) -> list[int]:
    """The head's classes for a text that `ctc_text` has reduced."""
    return [CTC_CHARACTERS.index(character) + 1 for character in ctc_text(text)]


def unwritten(text: str) -> str:
    """Letters and digits of a text that `ctc_text` leaves out, though they are said."""
    folded = unicodedata.normalize("NFKD", text).lower()
    return "".join(letter for letter in folded if letter.isalnum() and not "a" <= letter <= "z")


def ctc_steps_needed(text: str) -> int:
    """The fewest steps that can write a text: one a character, and a blank between two that are equal."""
    ids = ctc_ids(text)
    return len(ids) + sum(first == second for first, second in pairwise(ids))


class ContextBlock(nn.Module):
    """A depthwise convolution over time, then a two-layer perceptron, residual. It starts as the identity."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, CONTEXT_KERNEL, padding=CONTEXT_KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        """(windows, steps, width) → the same shape"""
        mixed = self.depthwise(steps.transpose(1, 2)).transpose(1, 2)
        return steps + self.dropout(self.contract(F.gelu(self.expand(self.norm(mixed)))))


class CTCHead(nn.Module):
    """Speech tokens → log-probabilities of characters.

    Two convolutions at 40 Hz hear letters; blocks at 20 Hz add a second or two of context to what they heard. The
    blocks start as nothing, for a deep head keeps CTC on its first plateau for longer.
    """

    def __init__(self, config: FastSLMConfig, dropout: float = 0.0):
        super().__init__()
        hidden, looks = config.hfq_config.hidden_size, config.ctc_steps_per_token
        if hidden % looks or looks % POOL:
            raise ValueError(f"ctc_steps_per_token is {looks}; it must be even and divide the width {hidden}.")
        self.looks = looks
        width = config.ctc_hidden_size
        self.hear1 = nn.Conv1d(hidden // looks, width, HEARING_KERNELS[0], padding=HEARING_KERNELS[0] // 2)
        self.hear2 = nn.Conv1d(width, width, HEARING_KERNELS[1], padding=HEARING_KERNELS[1] // 2)
        self.dropout = nn.Dropout(dropout)
        self.context = nn.ModuleList(ContextBlock(width, dropout) for _ in range(config.ctc_layers))
        self.out = nn.Linear(width, len(CTC_CHARACTERS) + 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(windows, tokens, hidden) → (windows, tokens · 24, classes): float32 log-probabilities; class 0 is blank."""
        steps = tokens.flatten(1).unflatten(1, (tokens.shape[1] * self.looks, -1)).transpose(1, 2)
        steps = F.gelu(self.hear1(steps))
        steps = steps + F.gelu(self.hear2(steps))
        heard = self.dropout(F.avg_pool1d(steps, POOL)).transpose(1, 2)
        context = heard
        for block in self.context:
            context = block(context)
        steps = steps.transpose(1, 2) + (context - heard).repeat_interleave(POOL, dim=1)
        return self.out(self.dropout(steps)).float().log_softmax(-1)


class FrameCTCHead(nn.Module):
    """Unfolded frames → log-probabilities of characters, two steps a frame (ours).

    For tokens that keep no looks in order of time, as those that Whisper's decoder reads (`model/whisper_decoder.py`).
    """

    STEPS_PER_FRAME = 2
    KERNEL = 5

    def __init__(self, frame_size: int, hidden_size: int, layers: int, dropout: float = 0.0):
        super().__init__()
        self.hear = nn.Conv1d(frame_size, hidden_size, self.KERNEL, padding=self.KERNEL // 2)
        self.dropout = nn.Dropout(dropout)
        self.context = nn.ModuleList(ContextBlock(hidden_size, dropout) for _ in range(layers))
        self.out = nn.Linear(hidden_size, self.STEPS_PER_FRAME * (len(CTC_CHARACTERS) + 1))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(windows, frames, hidden) → (windows, frames · 2, classes): float32 log-probabilities; class 0 is blank."""
        return self.letters(self.heard(frames))

    def heard(self, frames: torch.Tensor) -> torch.Tensor:
        """What is heard around each frame, before any letter: (windows, frames, hidden) → (windows, frames, width)."""
        steps = F.gelu(self.hear(frames.transpose(1, 2))).transpose(1, 2)
        for block in self.context:
            steps = block(steps)
        return steps

    def letters(self, steps: torch.Tensor) -> torch.Tensor:
        """`heard` → log-probabilities of characters."""
        scores = self.out(self.dropout(steps)).unflatten(-1, (self.STEPS_PER_FRAME, -1)).flatten(1, 2)
        return scores.float().log_softmax(-1)


@dataclass(frozen=True)
class TimedWord:
    """A word, when it is said in seconds from its window's start, and the mean log-probability of its letters."""

    word: str
    start: float
    end: float
    log_probability: float


def greedy_words(log_probs: torch.Tensor, seconds: float) -> list[TimedWord]:
    """The likeliest class of every step, repeats merged, blanks dropped, as words.

    Args:
        log_probs: (steps, classes) of one window.
        seconds: what the window lasts.
    """
    best, classes = log_probs.max(-1)
    step = seconds / len(log_probs)
    words: list[TimedWord] = []
    letters: list[tuple[str, int, float]] = []
    previous = BLANK

    def close() -> None:
        if letters:
            mean = sum(p for _, _, p in letters) / len(letters)
            text = "".join(letter for letter, _, _ in letters)
            words.append(TimedWord(text, letters[0][1] * step, (letters[-1][1] + 1) * step, mean))
            letters.clear()

    for index, (kind, probability) in enumerate(zip(classes.tolist(), best.tolist(), strict=True)):
        if kind not in (BLANK, previous):
            character = CTC_CHARACTERS[kind - 1]
            if character == " ":
                close()
            else:
                letters.append((character, index, probability))
        previous = kind
    close()
    return words


def greedy_text(log_probs: torch.Tensor) -> "list[str]":
    """The greedy text of each window, (windows, steps, classes) → windows texts."""
    return [" ".join(word.word for word in greedy_words(window, 1.0)) for window in log_probs]


def ctc_loss(log_probs: torch.Tensor, texts: "Sequence[str]") -> torch.Tensor:
    """Mean over the windows of the CTC loss per character, 0 for a text that no path of these steps can write.

    Such texts (`ctc_steps_needed`) teach nothing; whoever calls this counts them.

    Args:
        log_probs: (windows, steps, classes).
        texts: one a window, any case; reduced here.
    """
    ids = [ctc_ids(text) for text in texts]
    device = log_probs.device
    lengths = torch.tensor([len(i) for i in ids], device=device)
    targets = torch.tensor([c for i in ids for c in i], dtype=torch.long, device=device)
    steps = torch.full((len(ids),), log_probs.shape[1], device=device)
    losses = F.ctc_loss(
        log_probs.transpose(0, 1), targets, steps, lengths, blank=BLANK, reduction="none", zero_infinity=True
    )
    return (losses / lengths.clamp(min=20)).mean()


def make_ctc_head(config: FastSLMConfig) -> CTCHead | FrameCTCHead | None:
    """The CTC head of a configuration, `None` where it has none."""
    if not config.ctc_head:
        return None
    if config.ctc_reads == "tokens":
        return CTCHead(config)
    return FrameCTCHead(config.hfq_config.hidden_size, config.ctc_hidden_size, config.ctc_layers)
