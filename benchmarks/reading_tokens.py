"""Ways to make the language model read the speech tokens, each for the same processor time, from the same tokens.

    python benchmarks/reading_tokens.py runs/tiny-stage1-between                 # every way for 20 minutes of one core
    python benchmarks/reading_tokens.py MODEL --minutes 60 --ways posteriors
    python benchmarks/reading_tokens.py MODEL --ways taught --taught runs/tiny-stage3-all/model

Needs the recordings that stage 1 was trained on (`recipes/tiny/prepare.sh`). What hears stays as it is; what is trained
is what stands between tokens and language model, and the language model's LoRA. Half of a way's time may go into a
warm-up without the language model. Rows are kept in docs/experiments/reading-tokens.jsonl and not measured again; the
table goes into docs/training.md. Whether a language model hears at all is seen by giving it the sound of another clip:
if the loss stays, it does not.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import torch
import torch.nn.functional as F
from page_section import put_section
from torch import nn

import fastslm
from fastslm.audio import WINDOW_SECONDS
from fastslm.inference.cascade import Cascade
from fastslm.longform.timestamps import word_times
from fastslm.model.ctc_head import ctc_text
from fastslm.model.lora import lora_parameters
from fastslm.model.projectors import FADING, fold
from fastslm.training.feature_cache import cache_validation_windows
from fastslm.training.objectives import Batch
from fastslm.training.recipe import load_recipe
from fastslm.training.stages import Learner
from fastslm.training.trainer import Trainer
from fastslm.training.transcript import NEW_TOKENS, LanguageModelTranscript

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "tiny" / "stage1-adapt.yaml"
ROWS, PAGE = ROOT / "docs" / "experiments" / "reading-tokens.jsonl", ROOT / "docs" / "training.md"
# Learning rates: LoRA's, Muon's for other matrices, AdamW's for the rest.
LORA_RATE, MATRIX_RATE, OTHER_RATE = 5e-4, 0.01, 1e-3
WARMUP = 0.05
# Of the loss against the language model that was given the words.
DISTILLED, TEMPERATURE = 1.0, 1.0
# Of some ten thousand kinds, in a step of CTC.
SOME = 1500
LOSS_CLIPS, WRITTEN_CLIPS = 100, 30


class Heard:
    """A batch as the frozen part hears it: tokens (windows, 50, 384), frames that are unfolded from them, texts."""

    def __init__(self, learner: Learner, batch: Batch):
        assert learner.reader is not None
        with torch.no_grad():
            self.tokens = learner.hfq_former(batch.frames)
            self.unfolded = learner.reader.unfold(self.tokens)
            self.letters, self.features = letters(learner.head, self.unfolded)
        self.texts = [ctc_text(text) for text in batch.texts]


def letters(head: Any, unfolded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the CTC head: log-probabilities of letters (windows, 1200, 29), and what makes them (windows, 600, 256)."""
    kept: list[torch.Tensor] = []
    hook = head.out.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    scores = head(unfolded)
    hook.remove()
    return scores, kept[0]


class Projection(nn.Module):
    """The paper's: one linear map for each token. It starts with the spread of the language model's embeddings."""

    def __init__(self, hidden: int, embeddings: torch.Tensor):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.linear = nn.Linear(hidden, embeddings.shape[1])
        nn.init.normal_(self.linear.weight, std=float(embeddings.std()) / math.sqrt(hidden))
        nn.init.zeros_(self.linear.bias)

    def forward(self, heard: Heard) -> torch.Tensor:
        """(windows, 50, text hidden)"""
        return self.linear(self.norm(heard.tokens.float()))


class Posteriors(nn.Module):
    """CTC over the language model's own tokens; a place holds their embeddings, weighted by how likely each was said.

    One net for all steps of 0.1 s, since a word may begin anywhere in a token's 0.6 s. It reads what the CTC head does,
    and what that makes of it.
    """

    def __init__(self, read: int, hidden: int, lab: "Experiment", layers: int = 3):
        super().__init__()
        # Of all that a place may hold, each as likely as it is; or the likeliest alone.
        self.likeliest = False
        self.places = lab.model.config.tokens_per_window
        self.embeddings: torch.Tensor
        self.register_buffer("embeddings", lab.embeddings[lab.kinds].float(), persistent=False)
        self.hear = nn.Conv1d(read, hidden, 5, stride=2, padding=2)
        self.context = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(hidden, 6, 3 * hidden, 0.1, F.gelu, batch_first=True, norm_first=True),
            layers,
            enable_nested_tensor=False,
        )
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, self.embeddings.shape[1])
        self.bias = nn.Parameter(torch.zeros(len(self.embeddings) + 1))
        self.blank = nn.Linear(hidden, 1)

    def log_probs(self, heard: Heard, kinds: torch.Tensor | None = None) -> torch.Tensor:
        """(windows, 300, kinds + 1), blank first; of some kinds only, to learn faster."""
        said = heard.letters.exp().unflatten(1, (heard.features.shape[1], -1)).flatten(2)
        read = torch.cat([heard.unfolded.float(), heard.features.float(), said], -1)
        steps = F.gelu(self.hear(read.transpose(1, 2))).transpose(1, 2)
        steps = self.norm(self.context(steps))
        embeddings, bias = self.embeddings, self.bias
        if kinds is not None:
            embeddings, bias = embeddings[kinds], bias[torch.cat([torch.zeros(1, dtype=torch.long), 1 + kinds])]
        scores = torch.cat([self.blank(steps), F.linear(self.out(steps), embeddings)], -1)
        return F.log_softmax(scores.float() + bias, -1)

    def forward(self, heard: Heard) -> torch.Tensor:
        """(windows, 50, text hidden): what CTC hears, one after another, shared out as the cascade does words."""
        scores = self.log_probs(heard)
        found = []
        for window, path in zip(scores.exp(), scores.argmax(-1), strict=True):
            kinds, lengths = torch.unique_consecutive(path, return_counts=True)
            ends = lengths.cumsum(0).tolist()
            spans = [
                (end - n, end) for kind, n, end in zip(kinds.tolist(), lengths.tolist(), ends, strict=True) if kind
            ]
            heards = [window[first:last, 1:].sum(0) for first, last in spans]
            if self.likeliest:
                heards = [F.one_hot(chances.argmax(), len(chances)).float() for chances in heards]
            places = torch.zeros(self.places, window.shape[1] - 1)
            for place, own in enumerate(fold(range(len(heards)), self.places)):
                for order, index in enumerate(own):
                    places[place] += FADING**order * heards[index] / heards[index].sum()
            found.append(places)
        return torch.stack(found) @ self.embeddings


class Words(nn.Module):
    """No sound: the words of the transcript, as where the cascade hears them; what can be reached."""

    def __init__(self, cascade: Cascade):
        super().__init__()
        self.words = cascade.embed

    def forward(self, heard: Heard) -> torch.Tensor:
        return self.words(heard.texts).float()


class Experiment:
    """The model, its data, and what all ways share."""

    def __init__(self, given: argparse.Namespace):
        self.kept: Path | None = given.keep
        self.taught_by: str | None = given.taught
        settings = [f"threads={given.threads}", f"start_from={given.model}", "model.heard_words=true"]
        settings += ["data.validation_clips=100", *given.set]
        self.recipe = load_recipe(RECIPE, settings)
        trainer = Trainer(self.recipe, quiet=True)
        self.windows, device = trainer.windows, trainer.device
        self.learner = Learner(self.recipe, device)
        self.learner.eval()
        self.model, processor = self.learner.whole_model()
        self.transcript = LanguageModelTranscript(self.model, processor, 0.0)
        self.lora = list(lora_parameters(self.model.language_model))
        self.start = [parameter.detach().clone() for parameter in self.lora]
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.embeddings = self.model.get_input_embeddings().weight.detach()
        self.tokenizer: Any = processor.tokenizer
        self.cascade = Cascade(self.model, processor)
        texts = {
            label.text for variant in range(self.recipe.data.variants) for label in self.windows.variant(variant).labels
        }
        used = sorted({kind for text in texts for kind in self.ids(ctc_text(text))})
        self.kinds = torch.tensor(used)
        self.class_of = {kind: index for index, kind in enumerate(used)}
        cached = cache_validation_windows(self.recipe)
        batch = Batch(cached.frames(range(LOSS_CLIPS)).to(trainer.dtype), cached.labels[:LOSS_CLIPS], [0] * LOSS_CLIPS)
        self.validation = [self.hear(batch.part(range(i, i + 10))) for i in range(0, LOSS_CLIPS, 10)]

    def ids(self, text: str) -> list[int]:
        """The language model's tokens, each word with the space before it."""
        return self.tokenizer.encode(f" {text}", add_special_tokens=False) if text else []

    def hear(self, batch: Batch) -> Heard:
        with autocast():
            return Heard(self.learner, batch)

    def batches(self, seed: int) -> Any:
        """Training windows without end."""
        index = 0
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            yield self.hear(self.windows.batch(0, index, generator))
            index += 1

    def loss(self, speech: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """Cross-entropy of the transcript's tokens, given what stands for the speech."""
        return self.answer(speech, texts)[0]

    def answer(self, speech: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, logits and labels of the transcripts."""
        inputs = self.transcript.sequences(texts)
        labels = inputs.pop("labels")
        first, length = len(self.transcript.prompt), labels.shape[1]
        # Chosen one by one they lie together in memory, which the large product needs.
        places = torch.arange(first - 1, length - 1)
        speech = speech.to(self.embeddings.dtype).flatten(0, 1)
        logits = self.model(speech_tokens=speech, logits_to_keep=places, use_cache=False, **inputs).logits
        labels = labels[:, first:]
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten()), logits, labels

    @torch.no_grad()
    def measure(self, way: nn.Module) -> dict[str, float]:
        """Loss a token on validation clips, the same with the sound of another, and words wrong, greedily."""
        way.eval()
        own = other = 0.0
        heard_texts, written = [], []
        with autocast():
            for heard in self.validation:
                speech = way(heard)
                own += float(self.loss(speech, heard.texts))
                other += float(self.loss(speech.roll(1, 0), heard.texts))
                if len(written) < WRITTEN_CLIPS:
                    written += self.write(speech)
                    heard_texts += heard.texts
        way.train()
        count = len(self.validation)
        return {"loss": own / count, "of another clip": other / count, "wer": jiwer.wer(heard_texts, written)}

    def write(self, speech: torch.Tensor) -> list[str]:
        ids = torch.tensor([self.transcript.prompt] * len(speech))
        made = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            speech_tokens=speech.to(self.embeddings.dtype).flatten(0, 1),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        return [ctc_text(t) for t in self.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)]

    def train(
        self, parts: list[nn.Module | nn.Parameter], loss: Callable[[Heard], torch.Tensor], minutes: float, seed: int
    ):
        """Steps until so much processor time is spent. Returns their number and the mean of the last losses."""
        matrices, others, lora = [], [], []
        for part in parts:
            for parameter in [part] if isinstance(part, nn.Parameter) else part.parameters():
                parameter.requires_grad_(True)
                own = isinstance(part, nn.Parameter)
                (lora if own else matrices if parameter.ndim == 2 and min(parameter.shape) > 1 else others).append(
                    parameter
                )
        optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            optimizers.append(torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01))
        rest = [{"params": p, "lr": rate} for p, rate in ((others, OTHER_RATE), (lora, LORA_RATE)) if p]
        if rest:
            optimizers.append(torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0))
        groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [*matrices, *others, *lora]
        begun, seen = time.process_time(), []
        for heard in self.batches(seed):
            done = (time.process_time() - begun) / 60 / minutes
            if done >= 1:
                break
            share = min(done / WARMUP, 0.5 * (1 + math.cos(math.pi * done))) if WARMUP else 1.0
            for group, peak in groups:
                group["lr"] = peak * max(share, 1e-3)
            with autocast():
                value = loss(heard)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seen.append(value.item())
            if len(seen) % 20 == 0:
                print(f"  step {len(seen)}, {done:.0%}: {sum(seen[-20:]) / 20:.3f}", flush=True)
        return len(seen), sum(seen[-20:]) / len(seen[-20:])

    def keep(self, name: str, way: nn.Module, facts: dict[str, Any]) -> None:
        """Write what is trained into the folder that was given, if one was."""
        if self.kept is not None:
            self.kept.mkdir(parents=True, exist_ok=True)
            content = {"way": way.state_dict(), "lora": self.lora, "kinds": self.kinds, "facts": facts}
            torch.save(content, self.kept / f"{name}.pt")

    def teach(self) -> None:
        """LoRA of a model that was taught by text alone."""
        if self.taught_by is None:
            raise SystemExit("This way needs --taught, a model whose language model can write down words.")
        other = fastslm.load(self.taught_by, quiet=True).model
        with torch.no_grad():
            for parameter, value in zip(self.lora, lora_parameters(other.language_model), strict=True):
                parameter.copy_(value)

    def reset(self) -> None:
        """The language model as the base model is."""
        with torch.no_grad():
            for parameter, value in zip(self.lora, self.start, strict=True):
                parameter.copy_(value)


def autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def plain(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """The paper's: projection and LoRA, the language model's loss from the first step."""
    way = Projection(384, lab.embeddings)
    return way, through_llm(lab, way, [way], minutes)


def slots(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """First which of the language model's tokens are said in each slot, then as plain."""
    way = Projection(384, lab.embeddings)
    restricted = lab.embeddings[lab.kinds].float()
    none = nn.Parameter(torch.zeros(1))
    scale = nn.Parameter(torch.tensor(20.0))
    extra = nn.Module()
    extra.none, extra.scale = none, scale

    def loss(heard: Heard) -> torch.Tensor:
        wanted = slot_targets(lab, heard)
        scores = scale * F.linear(way(heard), restricted)
        scores = torch.cat([none.expand(*scores.shape[:2], 1), scores], -1)
        return -(wanted * F.log_softmax(scores.float(), -1)).sum(-1).mean()

    steps, last = lab.train([way, extra], loss, minutes / 2, 1)
    return way, {"warm-up steps": steps, "warm-up loss": last} | through_llm(lab, way, [way], minutes / 2)


def slot_targets(lab: Experiment, heard: Heard) -> torch.Tensor:
    """(windows, 50, kinds + 1): what is said in each slot, the first token most; the first kind is nothing."""
    found = torch.zeros(len(heard.texts), 50, len(lab.kinds) + 1)
    for row, said in enumerate(aligned(lab, heard)):
        orders = [0] * 50
        for middle, kind in said:
            slot = min(49, int(middle / WINDOW_SECONDS * 50))
            found[row, slot, kind] += FADING ** orders[slot]
            orders[slot] += 1
    found[..., 0] = (found.sum(-1) == 0).float()
    return found / found.sum(-1, keepdim=True)


def step_targets(lab: Experiment, heard: Heard, steps: int) -> torch.Tensor:
    """(windows, steps): the kind whose middle is in a step; 0 in all others."""
    found = torch.zeros(len(heard.texts), steps, dtype=torch.long)
    for row, said in enumerate(aligned(lab, heard)):
        for middle, kind in said:
            found[row, min(steps - 1, int(middle / WINDOW_SECONDS * steps))] = kind
    return found


def aligned(lab: Experiment, heard: Heard) -> list[list[tuple[float, int]]]:
    """Of each window the seconds at which each of the language model's tokens is half said, and its kind, from 1."""
    ends = [WINDOW_SECONDS] * len(heard.texts)
    found = []
    for words in word_times(heard.letters, heard.texts, ends, WINDOW_SECONDS):
        own: list[tuple[float, int]] = []
        for word in words:
            ids = lab.ids(word.text)
            for at, kind in enumerate(ids):
                own.append((word.start + (at + 0.5) / len(ids) * (word.end - word.start), 1 + lab.class_of[kind]))
        found.append(own)
    return found


def distilled(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """As plain, and towards what the untrained language model says when it is given the words as text."""
    way = Projection(384, lab.embeddings)
    words = Words(lab.cascade)

    def loss(heard: Heard) -> torch.Tensor:
        own, logits, labels = lab.answer(way(heard), heard.texts)
        with torch.no_grad():
            kept = [parameter.detach().clone() for parameter in lab.lora]
            lab.reset()
            # Autocast keeps the rounded LoRA of the pass before.
            torch.clear_autocast_cache()
            _, taught, _ = lab.answer(words(heard), heard.texts)
            for parameter, value in zip(lab.lora, kept, strict=True):
                parameter.copy_(value)
            torch.clear_autocast_cache()
        said = labels != -100
        target = F.log_softmax(taught[said].float() / TEMPERATURE, -1)
        return own + DISTILLED * F.kl_div(
            F.log_softmax(logits[said].float(), -1), target, log_target=True, reduction="batchmean"
        )

    steps, last = lab.train([way, *lab.lora], loss, minutes, 2)
    return way, {"steps": steps, "training loss": last}


def posteriors(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """First CTC over the language model's tokens, which a word's alignment warms up, then the language model."""
    way, facts = heard_by_ctc(lab, minutes / 2)
    return way, facts | through_llm(lab, way, [], minutes / 2)


def taught(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """As posteriors, CTC alone; the language model was taught by text, before it heard anything (`--taught`)."""
    way, facts = heard_by_ctc(lab, minutes)
    lab.teach()
    return way, facts | {"steps": 0}


def taught_further(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """As taught, and then half as long with the language model, from what it hears."""
    way, facts = taught(lab, minutes)
    return way, facts | through_llm(lab, way, [], minutes / 2)


def likeliest(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """As taught; a place holds the likeliest token alone, not all that may have been said."""
    way, facts = heard_by_ctc(lab, minutes)
    way.likeliest = True
    lab.teach()
    return way, facts | {"steps": 0}


def likeliest_further(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """As likeliest, and then half as long with the language model, from what it hears."""
    way, facts = likeliest(lab, minutes)
    return way, facts | through_llm(lab, way, [], minutes / 2)


def written_words(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """No sound: the right words, and the language model that was taught by text (`--taught`)."""
    lab.teach()
    return Words(lab.cascade), {"steps": 0}


def heard_by_ctc(lab: Experiment, minutes: float) -> tuple[Posteriors, dict[str, Any]]:
    """CTC over the language model's tokens; a quarter of the time it is warmed up by the words' alignment."""
    way = Posteriors(384 + lab.learner.head.out.in_features + lab.learner.head.out.out_features, 384, lab)
    if lab.kept is not None and (file := lab.kept / f"ctc-{minutes:g}.pt").exists():
        found = torch.load(file)
        if torch.equal(found["kinds"], lab.kinds):
            way.load_state_dict(found["way"])
            return way, found["facts"]

    def aligned_loss(heard: Heard) -> torch.Tensor:
        kinds, place = some_kinds(lab, heard)
        scores = way.log_probs(heard, kinds)
        return F.nll_loss(scores.flatten(0, 1), place[step_targets(lab, heard, scores.shape[1]).flatten()])

    first, _ = lab.train([way], aligned_loss, minutes / 4, 3)
    print(f"  words wrong {greedy_wer(lab, way):.1%}", flush=True)
    steps, last = lab.train([way], lambda heard: posterior_ctc(lab, way, heard), minutes * 3 / 4, 1)
    facts = {"warm-up steps": first + steps, "warm-up loss": last, "warm-up wer": greedy_wer(lab, way)}
    lab.keep(f"ctc-{minutes:g}", way, facts)
    return way, facts


def some_kinds(lab: Experiment, heard: Heard) -> tuple[torch.Tensor, torch.Tensor]:
    """Kinds that a batch's texts hold, and some others; and the place of each kind among them, from 1.

    The softmax over all would take most of a step.
    """
    own = torch.tensor(sorted({lab.class_of[kind] for text in heard.texts for kind in lab.ids(text)}), dtype=torch.long)
    others = torch.randperm(len(lab.kinds))[:SOME]
    kinds = torch.cat([own, others[~torch.isin(others, own)]])
    place = torch.zeros(len(lab.kinds) + 1, dtype=torch.long)
    place[1 + kinds] = torch.arange(1, len(kinds) + 1)
    return kinds, place


def posterior_ctc(lab: Experiment, way: Posteriors, heard: Heard) -> torch.Tensor:
    """CTC a token, mean over the windows."""
    kinds, place = some_kinds(lab, heard)
    scores = way.log_probs(heard, kinds).transpose(0, 1)
    targets = [
        place[torch.tensor([1 + lab.class_of[kind] for kind in lab.ids(text)], dtype=torch.long)]
        for text in heard.texts
    ]
    lengths = torch.tensor([len(own) for own in targets])
    steps = torch.full((len(targets),), len(scores))
    losses = F.ctc_loss(scores, torch.cat(targets), steps, lengths, reduction="none", zero_infinity=True)
    return (losses / lengths.clamp(min=1)).mean()


@torch.no_grad()
def greedy_wer(lab: Experiment, way: Posteriors) -> float:
    """Words wrong of what CTC alone writes."""
    way.eval()
    texts, written = [], []
    with autocast():
        for heard in lab.validation:
            for path in way.log_probs(heard).argmax(-1):
                kinds = [int(k) - 1 for k in torch.unique_consecutive(path) if k]
                written.append(ctc_text(lab.tokenizer.decode(lab.kinds[kinds].tolist())))
            texts += heard.texts
    way.train()
    return jiwer.wer(texts, written)


def words(lab: Experiment, minutes: float) -> tuple[nn.Module, dict[str, Any]]:
    """No sound: LoRA alone learns to write down words that it is given as embeddings."""
    way = Words(lab.cascade)
    return way, through_llm(lab, way, [], minutes)


def through_llm(lab: Experiment, way: nn.Module, parts: list[nn.Module], minutes: float) -> dict[str, Any]:
    for parameter in way.parameters():
        parameter.requires_grad_(False)
    steps, last = lab.train([*parts, *lab.lora], lambda heard: lab.loss(way(heard), heard.texts), minutes, 2)
    return {"steps": steps, "training loss": last}


WAYS = {
    "posteriors": posteriors,
    "slots": slots,
    "plain": plain,
    "distilled": distilled,
    "words": words,
    "taught": taught,
    "taught further": taught_further,
    "likeliest": likeliest,
    "likeliest further": likeliest_further,
    "written words": written_words,
}
# Those that are measured where none are named; the others need a model that was taught.
BY_THEMSELVES = ("posteriors", "slots", "plain", "distilled", "words")


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| way | minutes | steps before, with the language model | words wrong before it | loss a token "
        "| with the sound of another clip | words wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before = f"{row['warm-up wer']:.1%}" if "warm-up wer" in row else ""
        lines.append(
            f"| `{row['way']}`: {row['what']} | {row['minutes']:g} "
            f"| {row.get('warm-up steps', 0)}, {row['steps']} | {before} "
            f"| {row['loss']:.2f} | {row['of another clip']:.2f} | {row['wer']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train and measure the ways that are not measured yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0, help="of one core, for each way")
    parser.add_argument("--ways", default=",".join(BY_THEMSELVES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--keep", type=Path, help="a folder for the trained weights; CTC is not trained again")
    parser.add_argument("--taught", help="a model whose LoRA was taught by text alone")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the recipe")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.rows.read_text().splitlines()] if given.rows.exists() else []
    lab = Experiment(given)
    for name in given.ways.split(","):
        asked = {"way": name, "minutes": given.minutes, "model": Path(given.model).name, "taught": given.taught}
        asked["set"] = " ".join(given.set)
        if any(all(row.get(key) == value for key, value in asked.items()) for row in rows):
            continue
        print(name, flush=True)
        lab.reset()
        torch.manual_seed(1)
        way, facts = WAYS[name](lab, given.minutes)
        lab.keep(f"{name}-{given.minutes:g}", way, facts)
        what = (WAYS[name].__doc__ or "").rstrip(".")
        row = asked | {"what": what[0].lower() + what[1:]} | facts | lab.measure(way)
        print(json.dumps(row), flush=True)
        with given.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
    if given.rows == ROWS:
        put_section(table(rows), PAGE, "reading tokens")


if __name__ == "__main__":
    main()
