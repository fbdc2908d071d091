"""Whether this model computes what the authors' code computed: every recorded tensor of a case against ours.

A case is a folder with `config.json`, `vectors.safetensors`, `llm/` (configuration and tokenizer), a checkpoint in the
authors' layout, and the clips in `waveforms.safetensors` in it or beside it.

The authors' values were computed in float32. Ours are computed in float64, on the CPU, so that what differs is the
model and not the rounding of float32, which is another on every kind of processor and alone nears the tolerance.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastslm.errors import CheckpointError
from fastslm.features import extract_features, whole_mel
from fastslm.model.authors import load_authors, our_key, read_state_dict
from fastslm.model.lora import stored_key
from fastslm.model.modeling import FastSLMForConditionalGeneration

ABSOLUTE = RELATIVE = 1e-5
MEL_ABSOLUTE = 2e-5
# Sums over many values, recorded as one number.
NORM_RELATIVE = 1e-4
IGNORED_LABEL = -100
INT16_SCALE = 32768
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Comparison:
    """One recorded tensor or fact.

    Attributes:
        difference: the largest absolute one; of norms relative; infinite where there is nothing to compare with.
        note: why it could not be compared, else empty.
    """

    name: str
    difference: float
    agrees: bool
    note: str = ""


def verify_case(case: str | os.PathLike, checkpoint: str | os.PathLike | None = None) -> Iterator[Comparison]:
    """Compare every tensor of a case's `vectors.safetensors`, and the facts of its `config.json`, one by one.

    A tensor of an unknown name does not agree. Values agree within 1e-5 absolute plus 1e-5 relative, the log-mel within
    2e-5 absolute, norms of gradients within 1e-4 relative, ids, labels and masks exactly.

    Args:
        checkpoint: in the authors' layout; by default the case's own `checkpoint.pt`.

    Raises:
        CheckpointError: a file of the case is missing or damaged, or the checkpoint does not fit.
    """
    recorded = ParityCase(Path(case), None if checkpoint is None else Path(checkpoint))
    for name, expected in sorted(recorded.vectors.items()):
        yield _compare(name, expected, recorded)
    yield from recorded.compare_facts()


class ParityCase:
    """A case, and what our model makes of its clips and prompts, each computed when it is first asked for."""

    def __init__(self, folder: Path, checkpoint: Path | None, dtype: torch.dtype = torch.float64):
        if not folder.is_dir():
            raise CheckpointError(f"There is no folder {folder}: give the directory of one parity case.")
        self.config = _read_json(folder / "config.json")
        self.vectors = _read_tensors(folder / "vectors.safetensors")
        beside = [place / "waveforms.safetensors" for place in (folder, folder.parent)]
        self.waveforms = _read_tensors(next((file for file in beside if file.is_file()), beside[1]))
        checkpoint = checkpoint or folder / "checkpoint.pt"
        if not checkpoint.is_file():
            raise CheckpointError(
                f"There is no checkpoint {checkpoint}: expand the case's recipe and name the file with --checkpoint."
            )
        if not (folder / "llm").is_dir():
            raise CheckpointError(f"{folder} holds no folder llm: give the directory of one parity case.")
        alpha = self._entry("sizes", "lora_alpha")
        self.model, self.processor = load_authors(read_state_dict(checkpoint), folder / "llm", alpha, dtype)
        self.tokenizer: Any = self.processor.tokenizer
        self.prompt: str = self._entry("full", "prompt")
        self.clips: dict[str, Any] = self._entry("clips")
        self.clip = cache(self._clip)
        self.own_forward = cache(self._own_forward)
        self.generated = cache(self._generated)

    def _entry(self, *path: str) -> Any:
        value: Any = self.config
        for key in path:
            if not isinstance(value, dict) or key not in value:
                raise CheckpointError(f"The case's config.json has no {'.'.join(path)}: a parity case needs it.")
            value = value[key]
        return value

    def waveform(self, clip: str) -> torch.Tensor:
        """(samples,), float32"""
        source, samples = self._entry("clips", clip, "source"), self._entry("clips", clip, "samples")
        if source not in self.waveforms:
            raise CheckpointError(f"waveforms.safetensors has no {source}, which the clip {clip} is cut from.")
        return self.waveforms[source][:samples].float() / INT16_SCALE

    def features(self, clip: str) -> torch.Tensor:
        """(windows, mel bins, 3000)"""
        return extract_features(self.waveform(clip).numpy(), self.model.config.audio_config.num_mel_bins, "authors")

    def _clip(self, clip: str) -> dict[str, torch.Tensor]:
        """Everything between the waveform and the language model, under the authors' names."""
        model, former = self.model, self.model.hfq_former
        features = self.features(clip)
        seen = {
            "mel": whole_mel(self.waveform(clip).numpy(), features.shape[1]),
            "mel_windows": features,
            "audio_features": model.encode(features),
        }
        modules = {f"stage{n}_tokens": former.get_submodule(f"compressor{n}") for n in (1, 2, 3)}
        modules |= {f"stage{n}_feature": former.get_submodule(f"downsampler{n}") for n in (1, 2)}
        modules |= {"compressed": former.distillation}
        modules |= {f"out_attn{n}": block for n, block in enumerate(former.detail_recovery)}

        def keep(name: str) -> Callable[..., None]:
            return lambda _module, _inputs, output: seen.__setitem__(name, output)

        hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
        try:
            with torch.no_grad():
                tokens = model.get_speech_tokens(encoder_frames=seen["audio_features"])
                seen["speech_tokens"] = model.project(tokens).flatten(0, 1)[None]
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def clips_of(self, part: str) -> list[str]:
        """The clips of `single` or `batch`."""
        return self._entry("full", "batch_clips") if part == "batch" else [self._entry("full", "single_clip")]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def prompt_ids(self) -> list[int]:
        return self.ids(self.prompt)

    def text_batch(self, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids and labels of prompts and answers, one `<|AUDIO|>` each, right-padded: (batch, length) twice."""
        rows = []
        for answer in self._entry("full", f"{part}_answers"):
            answer_ids = [*self.ids(answer), self.tokenizer.eos_token_id]
            rows.append((self.prompt_ids + answer_ids, [IGNORED_LABEL] * len(self.prompt_ids) + answer_ids))
        longest = max(len(ids) for ids, _ in rows)
        pad = self.pad_token_id
        return (
            torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [IGNORED_LABEL] * (longest - len(labels)) for _, labels in rows]),
        )

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(END_OF_TEXT)

    @cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        """The training forward over the batch as the authors lay it out, and its gradients under `grad.`."""
        return self._authors_forward("batch")

    @cached_property
    def single(self) -> dict[str, torch.Tensor]:
        return self._authors_forward("single")

    def _authors_forward(self, part: str) -> dict[str, torch.Tensor]:
        model = self.model
        input_ids, labels = self.text_batch(part)
        frames = [self.clip(clip)["audio_features"] for clip in self.clips_of(part)]
        model.zero_grad()
        speech = [model.project(model.get_speech_tokens(encoder_frames=x)).flatten(0, 1) for x in frames]
        result = authors_batch_forward(model, input_ids, labels, speech, self.pad_token_id)
        result["loss"].sum().backward()
        grads = {f"grad.{stored_key(name)}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        result = {name: value.detach() for name, value in result.items()}
        return {"input_ids": input_ids, "labels": labels, **result, **grads}

    def _own_forward(self, part: str, row: int) -> torch.Tensor:
        """The loss of one row alone by our own forward: placeholders expanded, positions explicit. (1,)"""
        input_ids, labels = self.text_batch(part)
        kept = input_ids[row] != self.pad_token_id
        clip = self.clips_of(part)[row]
        speech = self.clip(clip)["speech_tokens"][0]
        ids, expanded = [], []
        for token, label in zip(input_ids[row][kept].tolist(), labels[row][kept].tolist(), strict=True):
            repeat = len(speech) if token == self.model.config.audio_token_id else 1
            ids += [token] * repeat
            expanded += [label] * repeat
        with torch.no_grad():
            loss = self.model(input_ids=torch.tensor([ids]), speech_tokens=speech, labels=torch.tensor([expanded])).loss
        return loss[None]

    def _generated(self, part: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy ids (batch, tokens) and the first logits (batch, vocabulary), by our processor and `generate`."""
        clips = self.clips_of(part)
        inputs = self.processor(
            [self.prompt] * len(clips),
            [self.waveform(clip).numpy() for clip in clips],
            add_special_tokens=False,
        )
        output = self.model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=None,
            pad_token_id=self.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return output.sequences[:, inputs["input_ids"].shape[1] :], output.logits[0]

    def value(self, name: str, expected: torch.Tensor) -> torch.Tensor | None:
        """Our tensor of that name; `None` where the name means nothing here. `expected` tells how many ids to make."""
        clip = max((clip for clip in self.clips if name.startswith(f"{clip}.")), key=len, default=None)
        part, _, rest = name.partition(".") if clip is None else (clip, ".", name.removeprefix(f"{clip}."))
        if clip is not None:
            return _part_of(self.clip(clip), rest, expected)
        if part == "generate":
            return self._generate_value(rest, expected)
        if part not in ("single", "batch"):
            return None
        values = self.batch if part == "batch" else self.single
        if rest.startswith("grad."):
            return values.get(f"grad.{our_key(rest.removeprefix('grad.'))}")
        return _part_of(values, rest, expected)

    def _generate_value(self, rest: str, expected: torch.Tensor) -> torch.Tensor | None:
        if rest == "input_ids":
            return torch.tensor([self.prompt_ids])
        part, _, what = rest.partition(".")
        if part not in ("single", "batch") or what not in ("new_ids", "step0_logits"):
            return None
        recorded = self.vectors.get(f"generate.{part}.new_ids", expected)
        ids, logits = self.generated(part, recorded.shape[1])
        return logits if what == "step0_logits" else _stopped(ids, recorded, self.tokenizer, self.pad_token_id)

    def compare_facts(self) -> Iterator[Comparison]:
        """The numbers of `config.json`, and what ours must give that theirs does not: a loss that no batch changes."""
        facts = self.config.get("facts", {})
        for key, expected in facts.get("batch_grad_norms", {}).items():
            grad = self.batch.get(f"grad.{our_key(key)}")
            yield _fact(f"facts.batch_grad_norms.{key}", None if grad is None else grad.norm().item(), expected, True)
        if "batch_grad_norms" in facts:
            theirs = {our_key(key) for key in facts["batch_grad_norms"]}
            ours = {name.removeprefix("grad.") for name in self.batch if name.startswith("grad.")}
            yield Comparison("facts.trained", float(len(ours ^ theirs)), ours == theirs)
        for part, expected in facts.get("loss", {}).items():
            ours = self.batch if part == "batch" else self.single if part == "single" else {}
            yield _fact(f"facts.loss.{part}", ours["loss"].item() if "loss" in ours else None, expected)
        for token, expected in facts.get("special_ids", {}).items():
            yield _fact(f"facts.special_ids.{token}", self.tokenizer.convert_tokens_to_ids(token), expected)
        if "tokenizer_length" in facts:
            yield _fact("facts.tokenizer_length", len(self.tokenizer), facts["tokenizer_length"])
        if "single.loss" in self.vectors:
            yield _compare_values("single.loss by forward", self.own_forward("single", 0), self.vectors["single.loss"])


def authors_batch_forward(
    model: FastSLMForConditionalGeneration,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    speech: list[torch.Tensor],
    pad_token_id: int,
) -> dict[str, torch.Tensor]:
    """The authors' training forward, for comparison only: ours never lays a batch out like this.

    Shorter speech is padded with zeros in the middle of its row and masked, and positions count the padding, so that a
    row's loss depends on the rows beside it.

    Args:
        input_ids, labels: (batch, text length), with one `<|AUDIO|>` a row, at the same place in all.
        speech: (speech tokens, text hidden) of each row.

    Returns:
        speech_tokens (batch, most speech tokens, text hidden), speech_pad_mask of the same (1 where padded), labels_out
        and logits over the whole sequence, loss (1,).
    """
    most = max(len(row) for row in speech)
    padded = torch.stack([F.pad(row, (0, 0, 0, most - len(row))) for row in speech])
    speech_mask = torch.stack([torch.arange(most) < len(row) for row in speech])
    place = int((input_ids[0] == model.config.audio_token_id).nonzero()[0])

    def spliced(text: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        return torch.cat([text[:, :place], middle, text[:, place + 1 :]], dim=1)

    embeddings = spliced(model.get_input_embeddings()(input_ids), padded)
    mask = spliced(input_ids != pad_token_id, speech_mask).long()
    labels_out = spliced(labels, torch.full(speech_mask.shape, IGNORED_LABEL))
    positions = torch.arange(embeddings.shape[1]).expand(len(embeddings), -1)
    logits = model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, adapter=True).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels_out[:, 1:].flatten(), ignore_index=IGNORED_LABEL)
    return {
        "speech_tokens": padded,
        "speech_pad_mask": (~speech_mask).to(torch.uint8),
        "labels_out": labels_out,
        "logits": logits,
        "loss": loss[None],
    }


def _part_of(values: Mapping[str, torch.Tensor], name: str, expected: torch.Tensor) -> torch.Tensor | None:
    """A tensor, or the part of it that its name's ending asks for: of a log-mel in frames, of others in tokens."""
    if name in values:
        return values[name]
    if not (match := re.fullmatch(r"(.+)[._](full|stats|(?:every|first|last)\d+|at\d+_\d+)", name)):
        return None
    value, selection = _part_of(values, match[1], expected), match[2]
    if value is None or selection == "full":
        return value
    if selection == "stats":
        rows = value[None] if expected.dim() == 1 else value
        stats = torch.stack([_statistics(row) for row in rows])
        return stats[0] if expected.dim() == 1 else stats
    first, *second = (int(number) for number in re.findall(r"\d+", selection))
    if selection.startswith("every"):
        return value[:, ::first]
    if selection.startswith("last"):
        return value[:, max(0, value.shape[1] - first) :]
    return value[:, first : second[0]] if second else value[:, :first]


def _statistics(value: torch.Tensor) -> torch.Tensor:
    """Mean, population standard deviation, largest absolute value, minimum. Summed in float64."""
    exact = value.double()
    return torch.stack([exact.mean(), exact.std(correction=0), exact.abs().max(), exact.min()])


def _stopped(ids: torch.Tensor, recorded: torch.Tensor, tokenizer: Any, pad: int) -> torch.Tensor:
    """Where a recorded row ends early and is padded, ours is cut at its own end token and padded too."""
    ids = ids.clone()
    for ours, theirs in zip(ids, recorded, strict=True):
        ends = (theirs == tokenizer.eos_token_id).nonzero()
        if len(ends) and bool((theirs[int(ends[0]) + 1 :] == pad).all()):
            own_ends = (ours == tokenizer.eos_token_id).nonzero()
            if len(own_ends):
                ours[int(own_ends[0]) + 1 :] = pad
    return ids


def _compare(name: str, expected: torch.Tensor, case: ParityCase) -> Comparison:
    value = case.value(name, expected)
    if value is None:
        return Comparison(name, float("inf"), False, "nothing of this name is known")
    is_mel = re.search(r"\.mel(_windows)?\.", name)
    return _compare_values(name, value, expected, MEL_ABSOLUTE if is_mel else ABSOLUTE)


def _compare_values(name: str, value: torch.Tensor, expected: torch.Tensor, absolute: float = ABSOLUTE) -> Comparison:
    if value.shape != expected.shape:
        note = f"the shape is {tuple(value.shape)}, recorded is {tuple(expected.shape)}"
        return Comparison(name, float("inf"), False, note)
    if expected.numel() == 0:
        return Comparison(name, 0.0, True)
    exact = not expected.is_floating_point()
    difference = (value.double() - expected.double()).abs()
    allowed = torch.zeros_like(difference) if exact else absolute + RELATIVE * expected.double().abs()
    # A NaN compares as not within anything.
    return Comparison(name, difference.max().item(), bool((difference <= allowed).all()))


def _fact(name: str, value: float | None, expected: float, is_norm: bool = False) -> Comparison:
    if value is None:
        return Comparison(name, float("inf"), False, "nothing of this name is known")
    difference = abs(value - expected)
    if isinstance(expected, int):
        return Comparison(name, difference, difference == 0)
    if is_norm:
        relative = difference / max(abs(expected), torch.finfo(torch.float32).tiny)
        return Comparison(name, relative, relative <= NORM_RELATIVE)
    return Comparison(name, difference, difference <= ABSOLUTE + RELATIVE * abs(expected))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} holds no {file.name}: give the directory of one parity case.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: give the directory of one parity case.") from error


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: a parity case needs it.") from error
