"""What `attention_span` saves: one training step of the HFQ-Former at tiny size, with and without, in turn.

    python benchmarks/local_attention.py [THREADS]

The one without projects and reads every frame for every token, as the paper's does.
"""

import statistics
import sys
import time

import torch

from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.starts import start_hfq_former

WINDOWS, ROUNDS = 8, 7


def step(model: HFQFormer, frames: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model(frames)
    tokens.float().square().mean().backward()
    return time.perf_counter() - started


def main() -> None:
    """Time both in turn and print seconds a window and the median of the ratios."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    common = {"hidden_size": 384, "detail_blocks": 4, "query_start": "time", "detail_positions": True}
    models = {}
    for name, span in (("all 2625 frames", None), ("attention_span 1", 1)):
        models[name] = HFQFormer(HFQFormerConfig(**common, detail_start="positional", attention_span=span))
        start_hfq_former(models[name])
    frames = torch.randn(WINDOWS, 1500, 384).bfloat16()
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(ROUNDS + 1):
        for name, model in models.items():
            seconds = step(model, frames)
            if round_:
                times[name].append(seconds)
    for name, seconds in times.items():
        print(f"{name:18} {statistics.median(seconds) / WINDOWS:.4f} s a window, forward and backward")
    dense, local = times.values()
    print(f"ratio              {statistics.median(d / s for d, s in zip(dense, local, strict=True)):.2f}")


if __name__ == "__main__":
    main()
