"""The least-squares start: fold the encoder's frames into tokens, and unfold them, as well as a linear map can (ours).

Detail recovery starts with looks at fixed times (`detail_start: positional`), so at first a token is a linear map of
what its looks see. Which one keeps most of the frames is a question with a closed answer, found in a minute from some
hundred windows without any training:

1. what the looks see is reduced to its first principal components, the same for all heads (their value projections);
2. the output projections are the reduced-rank regression of the slot's frames on those, of the token's width;
3. the unfolder's linear map is the regression of the frames on the tokens that now come out.
"""

from collections.abc import Iterable

import torch

from fastslm.model.hfq_former import HFQFormer
from fastslm.model.local_attention import SlotFrames, detail_frames
from fastslm.model.whisper_decoder import FRAMES_PER_TOKEN, Unfolder, frames_at_rate
from fastslm.training.tied_start import REST, TiedLooks

# Keeps the regressions finite where a direction hardly occurs, relative to the mean variance.
RIDGE = 1e-3


@torch.no_grad()
def start_from_frames(hfq_former: HFQFormer, unfolder: Unfolder, batches: list[torch.Tensor]) -> float:
    """Set value and output projections of detail recovery, and the unfolder, from encoder frames.

    Args:
        hfq_former: with positional start and an attention span; its queries and keys stay as they are.
        batches: encoder frames, (windows, 1500, hidden) each.

    Returns:
        The share of the frames' variance that tokens and unfolder lose.

    Raises:
        RecipeError: the HFQ-Former has no positional start or no attention span.
    """
    looks = TiedLooks(hfq_former)
    device = hfq_former.compressor1.query.device
    batches = [frames.to(device) for frames in batches]
    places = hfq_former.config.final_tokens * FRAMES_PER_TOKEN
    mean = torch.stack([frames_at_rate(frames, places).sum(0) for frames in batches]).sum(0) / sum(map(len, batches))
    centre, components = _components((_seen(looks, frames) for frames in batches), hfq_former.config.head_size)
    folding = _folding(
        (((_seen(looks, frames) - centre) @ components.T).flatten(2), frames_at_rate(frames, places) - mean)
        for frames in batches
    )
    _set_projections(hfq_former, components, centre, folding)
    return _start_unfolder(hfq_former, unfolder, batches, mean)


def _seen(looks: TiedLooks, frames: torch.Tensor) -> torch.Tensor:
    """What each look of each token sees: (windows, tokens, looks, hidden), float32."""
    hfq = looks.hfq_former
    frames = frames.float()
    x2 = hfq.downsampler1(frames)
    near = detail_frames(hfq.config, frames, x2, hfq.downsampler2(x2))
    assert isinstance(near, SlotFrames)
    parts = looks.attention_weights(near).split(near.sizes, dim=-1)
    return torch.stack([part.float() @ scale for part, scale in zip(parts, near.scales, strict=True)]).sum(0)


def _components(batches: Iterable[torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and the first principal components, (count, hidden), of vectors in (…, hidden)."""
    total, number, square = torch.zeros(()), 0, torch.zeros(())
    for batch in batches:
        flat = batch.flatten(0, -2)
        total, square, number = total + flat.sum(0), square + flat.T @ flat, number + len(flat)
    mean = total / number
    covariance = square / number - torch.outer(mean, mean)
    return mean, torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count].T


def _folding(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The reduced-rank regression of a slot's frames on its looks, (looks · channels, token width); variances are 1."""
    number = 0
    inner, outer = torch.zeros(()), torch.zeros(())
    width = 0
    for seen, frames in batches:
        tokens, width = seen.shape[1], frames.shape[-1]
        x = seen.flatten(0, 1)
        y = frames.unflatten(1, (tokens, -1)).flatten(2).flatten(0, 1)
        inner, outer, number = inner + x.T @ x, outer + x.T @ y, number + len(x)
    lower = torch.linalg.cholesky(_with_ridge(inner))
    whitened = torch.linalg.solve_triangular(lower, outer, upper=False)
    best = torch.linalg.eigh(whitened @ whitened.T).eigenvectors.flip(1)[:, :width]
    return torch.linalg.solve_triangular(lower.T, best, upper=True) * number**0.5


def _set_projections(hfq: HFQFormer, components: torch.Tensor, centre: torch.Tensor, folding: torch.Tensor) -> None:
    """Every head sees the same components; the output projections fold them; what else writes into a token is quiet."""
    hfq.distillation.out_proj.weight.mul_(REST)
    hfq.distillation.out_proj.bias.zero_()
    channels, heads = len(components), hfq.config.num_heads
    for block, part in zip(hfq.blocks, folding.split(heads * channels), strict=True):
        block.self_attention.out_proj.weight.mul_(REST)
        block.self_attention.out_proj.bias.zero_()
        cross = block.cross_attention
        cross.v_proj.weight.copy_(components.repeat(heads, 1))
        cross.v_proj.bias.copy_(-(components @ centre).repeat(heads))
        cross.out_proj.weight.copy_(part.T)
        cross.out_proj.bias.zero_()


def _start_unfolder(hfq: HFQFormer, unfolder: Unfolder, batches: list[torch.Tensor], mean: torch.Tensor) -> float:
    """Regress the frames on the tokens that come out. Returns the share of their variance that is lost."""
    inner, outer = torch.zeros(()), torch.zeros(())
    for frames in batches:
        x, y = _tokens_and_frames(hfq, frames, mean)
        inner, outer = inner + x.T @ x, outer + x.T @ y
    fit = torch.linalg.solve(_with_ridge(inner), outer)
    unfolder.spread.weight.copy_(fit[:-1].T)
    unfolder.spread.bias.copy_(fit[-1])
    unfolder.place.copy_(mean)
    lost, total, squares, number = 0.0, 0.0, 0.0, 0
    for frames in batches:
        there = frames_at_rate(frames, len(mean))
        total, squares, number = (
            total + float(there.sum()),
            squares + float(there.square().sum()),
            number + there.numel(),
        )
        x, y = _tokens_and_frames(hfq, frames, mean)
        lost += float((x @ fit - y).square().sum())
    return lost / (squares - total**2 / number)


def _tokens_and_frames(hfq: HFQFormer, frames: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every token of some windows: its channels and a 1, and its slot's frames without their mean, one row each."""
    tokens = hfq(frames.float())
    x = torch.cat([tokens, torch.ones_like(tokens[..., :1])], -1).flatten(0, 1)
    return x, (frames_at_rate(frames, len(mean)) - mean).unflatten(1, (tokens.shape[1], -1)).flatten(2).flatten(0, 1)


def _with_ridge(inner: torch.Tensor) -> torch.Tensor:
    return inner + RIDGE * inner.diagonal().mean() * torch.eye(len(inner), device=inner.device)
