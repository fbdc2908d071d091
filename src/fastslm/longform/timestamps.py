"""When each word of a text is said: the text is laid along what the CTC head heard (Viterbi over CTC; ours).

The words stay as they are, whoever wrote them; only their times are found. A word of which the head cannot write a
single letter, such as a number in digits, takes the time between its neighbours.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from fastslm.longform.results import Word
from fastslm.model.ctc_head import BLANK, SPACE, ctc_ids

IMPOSSIBLE = float("-inf")
# Steps of which the letters' scores are looked up in one go.
STEPS_TOGETHER = 32


def word_times(
    log_probs: torch.Tensor, texts: Sequence[str], seconds: Sequence[float], window: float
) -> list[list[Word]]:
    """The words of each window's text with their times from the window's start.

    Args:
        log_probs: (windows, steps, classes) of the CTC head.
        texts: one a window; words are what stands between spaces.
        seconds: of each window that are sound; no word ends later.
        window: seconds that all steps together last.

    Returns:
        One list a window, every word of the text in it, times rising, with the mean log-probability of its letters. A
        text that is longer than the sound can say gets evenly spread words.
    """
    spelled = [_spell(text.split()) for text in texts]
    steps = log_probs.shape[1]
    step = window / steps
    lasting = [max(1, min(steps, round(end / step))) for end in seconds]
    paths = _best_paths(log_probs.float().cpu(), [ids for ids, _ in spelled], lasting)
    found = []
    for text, (_, owners), path, scores, end in zip(texts, spelled, paths, log_probs, seconds, strict=True):
        words = text.split()
        letters: list[list[tuple[int, int, float]]] = [[] for _ in words]
        for owner, (first, last, kind) in zip(owners, path or (), strict=path is not None):
            if owner >= 0:
                letters[owner].append((first, last, float(scores[first : last + 1, kind].float().mean())))
        spans = [
            (own[0][0] * step, min((own[-1][1] + 1) * step, end), sum(score for *_, score in own) / len(own))
            if own
            else None
            for own in letters
        ]
        found.append(_filled(words, spans, end))
    return found


def _spell(words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Classes of the CTC head, and which word each belongs to; −1 for the spaces between words."""
    ids: list[int] = []
    owners: list[int] = []
    for index, word in enumerate(words):
        own = ctc_ids(word)
        if own and ids:
            ids.append(SPACE)
            owners.append(-1)
        ids += own
        owners += [index] * len(own)
    return ids, owners


def _best_paths(
    log_probs: torch.Tensor, texts: Sequence[Sequence[int]], lasting: Sequence[int]
) -> list[list[tuple[int, int, int]] | None]:
    """Of each window, the first and last step and the class of every letter; `None` where the steps do not suffice."""
    windows = len(log_probs)
    states = 2 * max((len(ids) for ids in texts), default=0) + 1
    kinds = torch.full((windows, states), BLANK)
    for row, ids in enumerate(texts):
        kinds[row, 1 : 2 * len(ids) : 2] = torch.tensor(ids, dtype=torch.long)
    # A letter may follow the one before at once, unless they are the same.
    barred = torch.full((windows, states), IMPOSSIBLE)
    barred[:, 3::2][kinds[:, 3::2] != kinds[:, 1:-2:2]] = 0.0
    # The scores, and those of the states one and two before, are views of one tensor that is written in place.
    padded = torch.full((windows, 2 + states), IMPOSSIBLE)
    scores, one, two = padded[:, 2:], padded[:, 1:-1], padded[:, :-2]
    scores[:, 0] = log_probs[:, 0, BLANK]
    if states > 1:
        scores[:, 1] = log_probs[:, 0].gather(1, kinds[:, 1:2])[:, 0]
    longest = max(lasting, default=1)
    came = torch.zeros(longest, windows, states, dtype=torch.int8)
    finals = [own.clone() for own in scores]
    best, skipping, said = torch.empty_like(kinds, dtype=scores.dtype), torch.empty_like(scores), torch.empty(0)
    for at in range(1, longest):
        place = (at - 1) % STEPS_TOGETHER
        if place == 0:
            steps = log_probs[:, at : at + STEPS_TOGETHER].transpose(0, 1)
            said = steps.gather(2, kinds.expand(len(steps), -1, -1))
        torch.add(two, barred, out=skipping)
        torch.gt(one, scores, out=came[at].view(torch.bool))
        torch.maximum(scores, one, out=best)
        came[at].masked_fill_(skipping > best, 2)
        torch.maximum(best, skipping, out=best)
        torch.add(best, said[place], out=scores)
        for row in (row for row, last in enumerate(lasting) if last == at + 1):
            finals[row] = scores[row].clone()
    rows = enumerate(zip(texts, lasting, strict=True))
    return [_trace(finals[row], came[:last, row], ids) for row, (ids, last) in rows]


def _trace(final: torch.Tensor, came: torch.Tensor, ids: Sequence[int]) -> list[tuple[int, int, int]] | None:
    """Back along the best path: the steps of every letter."""
    if not ids:
        return []
    last = 2 * len(ids)
    state = last if final[last] >= final[last - 1] else last - 1
    if final[state] == IMPOSSIBLE:
        return None
    first_step, last_step = [0] * len(ids), [0] * len(ids)
    back = came.numpy()
    for at in range(len(back) - 1, -1, -1):
        if state % 2:
            letter = state // 2
            first_step[letter] = at
            last_step[letter] = max(last_step[letter], at)
        state -= int(back[at, state])
    return list(zip(first_step, last_step, ids, strict=True))


def _filled(words: Sequence[str], spans: Sequence[tuple[float, float, float] | None], end: float) -> list[Word]:
    """Words without a time of their own share out the time between their neighbours."""
    timed = [(index, span) for index, span in enumerate(spans) if span is not None]
    edges = [(-1, (0.0, 0.0, 0.0)), *timed, (len(words), (end, end, 0.0))]
    found: list[Word] = []
    for (left, (_, begin, _)), (right, (start, stop, score)) in pairwise(edges):
        share = max(0.0, start - begin) / max(1, right - left - 1)
        for index in range(right - left - 1):
            found.append(Word(words[left + 1 + index], begin + index * share, begin + (index + 1) * share))
        if right < len(words):
            found.append(Word(words[right], start, stop, score))
    return found
