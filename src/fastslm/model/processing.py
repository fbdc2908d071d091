"""Recordings and prompts → what the model reads: log-mel windows, and ids with a placeholder for each speech token."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
)
from transformers.processing_utils import ProcessorMixin

from fastslm.audio import PAD_TO_SAMPLES, WINDOW_SAMPLES, AudioSource, load_audio
from fastslm.errors import AudioError, OptionError
from fastslm.features import HOP_SAMPLES, WINDOW_FRAMES, extract_features
from fastslm.model.configuration import MEL_MODES, PROMPT_LAYOUTS, FastSLMConfig, HFQFormerConfig
from fastslm.prompts import ADDED_TOKENS, AUDIO_END, AUDIO_SPAN, AUDIO_TOKEN, build_content
from fastslm.weights import resolve

# Of `FastSLMProcessor.__call__`, understood by `apply_chat_template` too.
CALL_OPTIONS = ("padding", "padding_side", "pad_to_multiple_of", "add_special_tokens", "return_tensors")
TOKENS_PER_WINDOW = HFQFormerConfig().final_tokens
# For a text model without a template of its own: ChatML, which the authors' Qwen3 and SmolLM2 both use.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def audio_token_count(samples: int, tokens_per_window: int = TOKENS_PER_WINDOW, mel_mode: str = "window") -> int:
    """Speech tokens, and so placeholders, of one recording. Integers only.

    Five minutes give 500, 30.01 s give 100. Under 1 s counts as 1 s.

    Args:
        samples: at 16 kHz, at least 1.
        mel_mode: in `authors`, only whole 10 ms frames count, so 30.005 s are still one window.

    Raises:
        OptionError: no samples, or an unknown mode.
    """
    if samples < 1:
        raise OptionError(f"A recording of {samples} samples has no tokens: give at least 1 sample.")
    if mel_mode not in MEL_MODES:
        raise OptionError(f"There is no mel mode {mel_mode!r}: choose one of {', '.join(MEL_MODES)}.")
    samples = max(samples, PAD_TO_SAMPLES)
    windows = -(-(samples // HOP_SAMPLES) // WINDOW_FRAMES) if mel_mode == "authors" else -(-samples // WINDOW_SAMPLES)
    return windows * tokens_per_window


def add_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add FastSLM's nine tokens, in the authors' order, to a text model's tokenizer, in place.

    It also gets a padding token, its end token, and a chat template, ChatML, where it has none.
    """
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


class FastSLMProcessor(ProcessorMixin):
    """Whisper's feature extractor and the text model's tokenizer.

    Args:
        feature_extractor: its `feature_size` is the number of mel bins.
        tokenizer: with FastSLM's tokens (`add_tokens`).
        tokens_per_window: speech tokens of 30 s, the configuration's.
        mel_mode: `window` or `authors`, the configuration's.
        prompt_layout: `audio_first` or `task_first`, the configuration's.
    """

    feature_extractor: WhisperFeatureExtractor
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        feature_extractor: WhisperFeatureExtractor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        tokens_per_window: int = TOKENS_PER_WINDOW,
        mel_mode: str = "window",
        prompt_layout: str = "audio_first",
    ):
        if mel_mode not in MEL_MODES or prompt_layout not in PROMPT_LAYOUTS:
            raise OptionError(
                f"The processor was given mel_mode {mel_mode!r} and prompt_layout {prompt_layout!r}: the first is one "
                f"of {', '.join(MEL_MODES)}, the second one of {', '.join(PROMPT_LAYOUTS)}."
            )
        self.tokens_per_window = tokens_per_window
        self.mel_mode = mel_mode
        self.prompt_layout = prompt_layout
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id = self.tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)

    @classmethod
    def from_base(
        cls, base_encoder: str | os.PathLike, base_text_model: str | os.PathLike, **options: Any
    ) -> "FastSLMProcessor":
        """A processor for a new model of these base weights. `options` are the constructor's.

        Raises:
            WeightsError: the base weights cannot be found or fetched.
        """
        n_mels = AutoConfig.from_pretrained(resolve(base_encoder)).num_mel_bins
        tokenizer = add_tokens(AutoTokenizer.from_pretrained(resolve(base_text_model)))
        return cls(WhisperFeatureExtractor(feature_size=n_mels), tokenizer, **options)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, "input_features"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: AudioSource | Sequence[AudioSource] | None = None,
        sampling_rate: float | None = None,
        *,
        images: None = None,
        videos: None = None,
        padding: bool | str = True,
        padding_side: str = "left",
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prompts and the recordings that they speak of.

        Args:
            text: one prompt or several, each `<|AUDIO|>` in them standing for one recording.
            audio: as many recordings, in the order of the texts: paths, encoded files, or arrays (samples,).
            sampling_rate: Hz, of arrays; 16,000 by default.
            images, videos: `None`; transformers' pipelines name all that other models take.
            padding_side: `left` for generation; `right` for training.
            add_special_tokens: by default where the prompt does not begin with the tokenizer's first token already.

        Returns:
            input_ids and attention_mask (batch, length); with audio, input_features (windows of all rows, mel bins,
            3000), in the order of the recordings.

        Raises:
            ValueError: the number of `<|AUDIO|>` in the texts is not that of the recordings.
            AudioError: a recording cannot be read.
        """
        if images is not None or videos is not None:
            raise OptionError("Pictures were given to a model that only hears: leave images and videos out.")
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}; it must be 'pt' or 'np'.")
        features = None if audio is None else [self.features(clip, sampling_rate) for clip in _as_list(audio)]
        data: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            expanded = self.expand(texts, [len(x) for x in features or ()])
            if add_special_tokens is None:
                first = self.tokenizer.bos_token
                add_special_tokens = not (first and expanded[0].startswith(str(first)))
            # In two steps: told to pad, a fast tokenizer changes, and threads that use it meanwhile fail.
            encoded = self.tokenizer.pad(
                self.tokenizer(expanded, add_special_tokens=add_special_tokens),
                padding=padding,
                padding_side=padding_side,
                pad_to_multiple_of=pad_to_multiple_of,
                return_tensors="pt",
            )
            data.update(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        if features:
            data["input_features"] = torch.cat(features)
        return BatchFeature(data, tensor_type=return_tensors)

    def features(self, audio: AudioSource, sampling_rate: float | None = None) -> torch.Tensor:
        """The log-mel windows of one recording: (windows, mel bins, 3000), float32."""
        waveform = load_audio(audio, sampling_rate)
        features = extract_features(waveform, self.feature_extractor.feature_size, self.mel_mode)  # type: ignore
        assert len(features) == audio_token_count(len(waveform), 1, self.mel_mode)
        return features

    def expand(self, texts: Sequence[str], windows: Sequence[int]) -> list[str]:
        """Each `<|AUDIO|>` becomes as many as its recording has speech tokens.

        Args:
            texts: prompts. windows: of each recording, in the order of the prompts.

        Raises:
            ValueError: their numbers differ.
        """
        places = sum(text.count(AUDIO_TOKEN) for text in texts)
        if places != len(windows):
            raise ValueError(
                f"The prompts name {places} recordings with {AUDIO_TOKEN}, and {len(windows)} are given: "
                "make the two equal."
            )
        counts = iter(windows)
        expanded = []
        for text in texts:
            first, *rest = text.split(AUDIO_TOKEN)
            parts = [first, *(AUDIO_TOKEN * (next(counts) * self.tokens_per_window) + part for part in rest)]
            expanded.append("".join(parts))
        return expanded

    def build_prompt(self, task: str, **options: Any) -> str:
        """The whole prompt of a task about one recording, with the chat template and one `<|AUDIO|>`.

        In the layout `audio_first` it is the same for every task and question up to and including `<|audio_eos|>`.

        Args:
            task: `transcribe`, `translate`, `summarize` or `ask`.
            options: those of `fastslm.prompts.build_content`.

        Raises:
            OptionError: an unknown task or language, or an option that belongs to another task.
        """
        content = build_content(task, **{"layout": self.prompt_layout, **options})
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def split_prompt(self, prompt: str) -> tuple[str, str]:
        """A prompt up to and including its last `<|audio_eos|>`, and the rest: what a cache can hold, and the question.

        Raises:
            ValueError: there is no recording in it.
        """
        head, end, rest = prompt.rpartition(AUDIO_END)
        if not end:
            raise ValueError(f"The prompt has no {AUDIO_END}: build it with build_prompt.")
        return head + end, rest

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        sampling_rate: float | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **template_kwargs: Any,
    ) -> Any:
        """A conversation, or several, as the text model's chat template lays it out.

        A message's content is text, or a list of `{"type": "text", "text": …}` and `{"type": "audio", …}`, whose
        recording is under `audio` (samples), `path` or `url` (a file; nothing is fetched).

        Returns:
            the prompt, or with `tokenize` what the processor makes of it and of the recordings; without `return_dict`
            its input_ids.

        Raises:
            AudioError: a recording lies on the network, or cannot be read.
        """
        single = not conversation or isinstance(conversation[0], dict)
        conversations: list[Any] = [conversation] if single else list(conversation)
        recordings: list[AudioSource] = []
        options = dict(processor_kwargs or {})
        options |= {key: template_kwargs.pop(key) for key in CALL_OPTIONS if key in template_kwargs}
        if cut := sorted({"truncation", "max_length"} & template_kwargs.keys()):
            raise OptionError(f"A prompt with speech is never cut, so {' and '.join(cut)} cannot be: leave it out.")
        template: Any = chat_template or self.chat_template
        prompts: list[Any] = [
            self.tokenizer.apply_chat_template(
                [{**message, "content": _flat_content(message["content"], recordings)} for message in messages],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **template_kwargs,
            )
            for messages in conversations
        ]
        if not tokenize:
            return prompts[0] if single else prompts
        batch = self(prompts, recordings or None, sampling_rate, **options)
        return batch if return_dict else batch["input_ids"]


def _flat_content(content: str | list[dict[str, Any]], recordings: list[AudioSource]) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if part["type"] == "text":
            parts.append(part["text"])
        elif part["type"] == "audio":
            recording = next((part[key] for key in ("audio", "path", "url") if part.get(key) is not None), None)
            if recording is None or (isinstance(recording, str) and recording.startswith(("http://", "https://"))):
                raise AudioError(f"The recording {recording} is no local file: download it and give its path.")
            recordings.append(recording)
            parts.append(AUDIO_SPAN)
        else:
            raise ValueError(f"A message holds a part of type {part['type']!r}; text and audio are allowed.")
    return "".join(parts)


def _as_list(audio: AudioSource | Sequence[AudioSource]) -> list[AudioSource]:
    if isinstance(audio, list | tuple) and not (audio and np.isscalar(audio[0]) and not isinstance(audio[0], str)):
        return list(audio)
    if isinstance(audio, list | tuple):
        return [np.asarray(audio, dtype=np.float32)]
    return [audio]  # type: ignore[list-item]


AutoProcessor.register(FastSLMConfig, FastSLMProcessor)
