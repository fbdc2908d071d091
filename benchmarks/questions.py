"""What a question about a recording costs: 50 speech tokens a window against 12.5 and 25 a second, same language model.

    python benchmarks/questions.py fastslm-tiny RECORDING [--longest 16000] [--threads 2]

Writes the section "Questions" of docs/benchmarks.md and its picture. Two baselines are built here with random weights,
which cost what trained ones do: four encoder frames stacked and a perceptron (Voxtral's kind, 12.5 tokens a second),
and pairs of frames averaged and projected (Qwen2-Audio's kind, 25). All read the same encoder's frames of the same
recording, its windows repeated to the length needed; the recording itself is then asked about as a user does. Prompts
of more than `--longest` places are not run: their times are those of a·n + b·n², fitted to the others by least squares
of the relative error, and marked.
"""

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import numpy as np
import torch
from page_section import put_section
from torch import nn

import fastslm
from fastslm.audio import WINDOW_SECONDS, stream_audio
from fastslm.features import window_mel
from fastslm.longform.generation import context_length, prompt_ids, write
from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.longform.prefix_cache import Prefix, prefill
from fastslm.prompts import AUDIO_TOKEN

MINUTES = (1, 10, 60, 150)
QUESTIONS = ("Who won?", "And what did the others say about it?")
# Windows of the recording that are encoded; longer recordings repeat them.
WINDOWS = 4
TRANSCRIPT_WINDOWS = 10
TRANSCRIPT_TOKENS = 75
DOCS = Path(__file__).parents[1] / "docs"


class Stacked(nn.Module):
    """Four frames of 50 a second side by side, and a perceptron: 12.5 a second."""

    def __init__(self, hidden: int, text_hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * hidden, text_hidden), nn.GELU(), nn.Linear(text_hidden, text_hidden))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(windows, 1500, hidden) → (windows, 375, text hidden)"""
        return self.layers(frames.unflatten(1, (-1, 4)).flatten(2))


class Pooled(nn.Module):
    """Pairs of frames averaged and projected: 25 a second."""

    def __init__(self, hidden: int, text_hidden: int):
        super().__init__()
        self.projection = nn.Linear(hidden, text_hidden)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(windows, 1500, hidden) → (windows, 750, text hidden)"""
        return self.projection(frames.unflatten(1, (-1, 2)).mean(2))


@dataclass(frozen=True)
class System:
    """A way from encoder frames to what the language model reads."""

    name: str
    per_window: int
    adapt: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Row:
    """One system and duration; seconds are `None` until they are known."""

    system: str
    minutes: int
    places: int
    kv_bytes: int
    first: float | None = None
    second: float | None = None
    adapter: float | None = None
    fitted: bool = False


def systems(model: Any) -> list[System]:
    """Ours and the two baselines."""
    torch.manual_seed(0)
    hidden, text_hidden = model.config.hfq_config.hidden_size, model.config.text_hidden_size
    stacked, pooled = Stacked(hidden, text_hidden).eval(), Pooled(hidden, text_hidden).eval()
    return [
        System("FastSLM, 50 a window", model.config.tokens_per_window, lambda x: model.project(model.hfq_former(x))),
        System("stacked frames, 12.5 a second", 375, stacked),
        System("pooled frames, 25 a second", 750, pooled),
    ]


def ids_of(loaded: Any, question: str, speech_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of a prompt's beginning and of all of it, with so many placeholders."""
    prompt = loaded.processor.build_prompt("ask", question=question)
    head, _ = loaded.processor.split_prompt(prompt)
    found = []
    for text in (head, prompt):
        before, after = text.split(AUDIO_TOKEN)
        parts = [prompt_ids(loaded.processor, before, []), prompt_ids(loaded.processor, after, [])]
        places = torch.full((1, speech_tokens), loaded.model.config.audio_token_id)
        found.append(torch.cat([parts[0], places, parts[1]], 1))
    return found[0], found[1]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gave; what takes under three seconds is the median of three."""
    gc.collect()
    took, result = [], None
    while len(took) < 3 and sum(took) < 3:
        result = None
        started = monotonic()
        result = work()
        took.append(monotonic() - started)
    return median(took), result


@torch.inference_mode()
def measure(loaded: Any, system: System, frames: torch.Tensor, minutes: int, longest: int) -> Row:
    """Seconds to the first token of the first and of the second question; encoding apart."""
    model, processor = loaded.model, loaded.processor
    windows = int(minutes * 60 / WINDOW_SECONDS)
    tokens = windows * system.per_window
    head, whole = ids_of(loaded, QUESTIONS[0], tokens)
    config = model.config.text_config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_place = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * model.dtype.itemsize
    row = Row(system.name, minutes, head.shape[1], head.shape[1] * a_place)
    if head.shape[1] > longest:
        return row
    groups = [frames for _ in range(0, windows, len(frames))]
    row.adapter, adapted = timed(lambda: torch.cat([system.adapt(group) for group in groups])[:windows].flatten(0, 1))

    def first() -> Prefix:
        prefix = prefill(model, head, adapted, "")
        write(model, processor, whole, [1], past_key_values=prefix.cache)
        return prefix

    row.first, prefix = timed(first)
    assert sum(layer.keys[..., : prefix.length, :].nbytes * 2 for layer in prefix.cache.layers) == row.kv_bytes
    _, other = ids_of(loaded, QUESTIONS[1], tokens)

    def second() -> None:
        prefix.shrink()
        write(model, processor, other, [1], past_key_values=prefix.cache)

    row.second, _ = timed(second)
    return row


def fit(rows: list[Row]) -> None:
    """Give the rows that were not run the seconds of a·n + b·n²."""
    ran = [row for row in rows if row.first is not None]
    places = np.array([row.places for row in ran], dtype=float)
    seconds = np.array([row.first for row in ran])
    basis = np.stack([places, places**2], 1)
    coefficients, *_ = np.linalg.lstsq(basis / seconds[:, None], np.ones(len(ran)), rcond=None)
    for row in rows:
        if row.first is None:
            row.first = float(coefficients @ [row.places, row.places**2])
            row.fitted = True


@torch.inference_mode()
def transcribing(loaded: Any, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """What the three methods of transcribing cost, with the language model as the reader."""
    windows = tokens.repeat(-(-TRANSCRIPT_WINDOWS // len(tokens)), 1, 1)[:TRANSCRIPT_WINDOWS]
    ends = torch.arange(1, len(windows) + 1, dtype=torch.float64) * WINDOW_SECONDS
    facts = MemoryFacts(loaded.encoder.fingerprint, "benchmark", float(ends[-1]), "")
    silent = torch.zeros(len(windows), dtype=torch.bool)
    memory = SpeechMemory(windows, torch.stack([ends - WINDOW_SECONDS, ends], 1), silent, facts)
    seen: list[int] = []
    hook = loaded.model.language_model.register_forward_pre_hook(
        lambda module, arguments, options: seen.append(options["inputs_embeds"][..., 0].numel()), with_kwargs=True
    )
    rows = []
    for method in ("window", "context", "whole"):
        seen.clear()
        budget = TRANSCRIPT_TOKENS * (len(windows) if method == "whole" else 1)
        # Neither does one end earlier than another, whatever this checkpoint has learnt.
        loaded.model.generation_config.min_new_tokens = budget
        started = monotonic()
        result = loaded.transcribe(memory, reader="llm", method=method, max_new_tokens=budget, repetition="keep")
        seconds = monotonic() - started
        rows.append({"method": method, "seconds": seconds, "places": sum(seen), "written": result.usage.text_tokens})
    hook.remove()
    loaded.model.generation_config.min_new_tokens = None
    return rows


def asking(loaded: Any, recording: str) -> dict[str, Any]:
    """Seconds of encoding the whole recording and of each of two questions, what hears the words counted."""
    started = monotonic()
    memory = loaded.encode(recording)
    found: dict[str, Any] = {"encoding": monotonic() - started, "minutes": memory.facts.duration / 60, "asked": []}
    for question in QUESTIONS:
        started = monotonic()
        usage = loaded.ask(memory, question).usage
        found["asked"].append((monotonic() - started, usage.prompt_tokens, usage.cached_tokens, usage.text_tokens))
    return found


def draw(rows: list[Row], file: Path) -> None:
    """Seconds to the first token against minutes heard."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in dict.fromkeys(row.system for row in rows):
        own = [row for row in rows if row.system == name]
        minutes = [row.minutes for row in own]
        (line,) = axes[0].loglog(minutes, [row.first for row in own], "--", linewidth=1)
        ran = [row for row in own if not row.fitted]
        colour = line.get_color()
        axes[0].loglog([row.minutes for row in ran], [row.first for row in ran], "o-", color=colour, label=name)
        axes[1].loglog(minutes, [row.kv_bytes / 1e6 for row in own], "o-", color=colour, label=name)
    axes[0].set(xlabel="minutes heard", ylabel="seconds to the first token", title="First question (dashed: fitted)")
    axes[1].set(xlabel="minutes heard", ylabel="keys and values, MB", title="Memory of the language model")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def section(loaded: Any, rows: list[Row], asked: dict[str, Any], methods: list[dict[str, Any]], threads: int) -> str:
    """The section as Markdown."""
    limit = context_length(loaded.model)
    lines = [
        "## Questions",
        "",
        f"`python benchmarks/questions.py {loaded.name} RECORDING`; torch {torch.__version__}, {threads} "
        f"thread{'s' if threads > 1 else ''} of {platform.machine()}, "
        f"{str(loaded.model.dtype).removeprefix('torch.')}. From speech that is encoded to the first token of the "
        f"answer, the same language model ({loaded.model.config.base_text_model}) behind each adapter; the adapters of "
        "the baselines have random weights, which cost what trained ones do. The encoder's time is the same for all "
        "and not counted.",
        "",
        f"The language model has {limit} positions: what needs more is marked \\*: it shows the cost, but no answer "
        "could be trusted, and `ask` goes span by span there (`map_reduce`). ≈ was not run, but computed from the "
        "others (a·n + b·n²).",
        "",
        "| adapter | minutes | places | KV memory | adapter | first question | second question | second / first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        beyond = "\\*" if limit is not None and row.places > limit else ""
        mark = "≈ " if row.fitted else ""
        adapter = "" if row.adapter is None else f"{row.adapter:.2f} s"
        second = "" if row.second is None else f"{row.second:.3f} s"
        share = "" if row.second is None or not row.first else f"{row.second / row.first:.1%}"
        lines.append(
            f"| {row.system} | {row.minutes} | {row.places:,}{beyond} | {row.kv_bytes / 1e6:,.0f} MB | {adapter} "
            f"| {mark}{row.first:,.2f} s | {second} | {share} |"
        )
    ours = [row for row in rows if row.system.startswith("FastSLM")]
    dense = next(row for row in rows if row.system.startswith("pooled") and row.minutes == 10)
    per_minute = (ours[-1].places - ours[0].places) / (ours[-1].minutes - ours[0].minutes)
    hours = (dense.places - (ours[0].places - ours[0].minutes * per_minute)) / per_minute / 60
    lines += [
        "",
        f"In the {dense.places:,} places that 10 minutes take at 25 tokens a second, FastSLM holds {hours:.1f} hours.",
        "",
        "![What a question costs](questions.png)",
        "",
        f"**As a user asks**: {asked['minutes']:.1f} minutes, encoded once in {asked['encoding']:.1f} s, then two "
        "questions to the whole answer; the first hears the words of every window too:",
        "",
        "| question | seconds | places in prompts | of them kept from before | tokens written | of the first |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {seconds:.2f} | {places:,} | {kept:,} | {written} | {seconds / asked['asked'][0][0]:.1%} |"
            for name, (seconds, places, kept, written) in zip(("first", "second"), asked["asked"], strict=True)
        ),
        "",
        f"**Ways to transcribe with the language model** (`method`), {TRANSCRIPT_WINDOWS} windows, "
        f"{TRANSCRIPT_TOKENS} tokens written for each:",
        "",
        "| method | seconds | places through the language model | tokens written |",
        "|---|---|---|---|",
        *(f"| `{row['method']}` | {row['seconds']:.1f} | {row['places']:,} | {row['written']} |" for row in methods),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the section and its picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("recording")
    parser.add_argument("--longest", type=int, default=16_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = fastslm.load(given.model)
    mels = loaded.model.config.audio_config.num_mel_bins
    features = [window_mel([samples], mels)[0] for samples in _first(stream_audio(given.recording), WINDOWS)]
    frames = loaded.model.encode(torch.stack(features))
    rows = []
    for system in systems(loaded.model):
        for minutes in MINUTES:
            rows.append(measure(loaded, system, frames, minutes, given.longest))
            print(json.dumps(rows[-1].__dict__), file=sys.stderr)
    fit(rows)
    with torch.inference_mode():
        tokens = loaded.model.hfq_former(frames)
    asked = asking(loaded, given.recording)
    print(json.dumps(asked), file=sys.stderr)
    methods = transcribing(loaded, tokens)
    draw(rows, DOCS / "questions.png")
    text = section(loaded, rows, asked, methods, given.threads)
    put_section(text, DOCS / "benchmarks.md", "questions")
    print(text)


def _first(windows: Any, count: int) -> list[np.ndarray]:
    found = []
    for window in windows:
        found.append(window)
        if len(found) == count:
            break
    return found


if __name__ == "__main__":
    main()
