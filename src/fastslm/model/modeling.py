"""The one path, in transformers' terms: Whisper encoder, HFQ-Former, projector, language model with LoRA.

    input_features ─ encoder (frozen) ─ hfq_former ─ projector ─┐ 50 embeddings a window
    input_ids ─ embedding, its <|AUDIO|> places filled with ────┘ ─ language_model ─ logits, loss

`forward` is that and nothing else. What else reads the 50 tokens, the CTC head and Whisper's decoder, hangs on the
model to be saved and loaded with it; inference calls it by name.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.generic import can_return_tuple

import fastslm.model.processing  # noqa: F401  AutoProcessor is to know ours where the Auto models do
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.ctc_head import make_ctc_head
from fastslm.model.generating import SPEECH_INPUTS, SpeechGeneration
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.lora import add_lora, checkpoint_contexts, is_lora_key, lora_layers, lora_switched, merge_lora
from fastslm.model.projectors import CTCEmbeddings, build_projector
from fastslm.model.saving import UNFOLDER
from fastslm.model.starts import mark_started, start_hfq_former
from fastslm.model.whisper_decoder import UnfoldingDecoder

# Without gradients, windows pass the encoder in groups: memory does not grow with the recording.
WINDOWS_AT_ONCE = 8


class _Forced(threading.local):
    """What `adapter_forced` says in this thread; `None` is nothing."""

    on: bool | None = None


_FORCED = _Forced()


@dataclass
class FastSLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """As transformers' `CausalLMOutputWithPast`, and the speech embeddings that went into the prompt.

    speech_tokens: (speech tokens of the whole batch, text hidden), `None` where no speech was given.
    """

    speech_tokens: torch.Tensor | None = None


class FastSLMForConditionalGeneration(SpeechGeneration):
    """Hears speech at 50 tokens a 30 s window and answers in text (arXiv 2601.06199).

    Only the HFQ-Former, the projector, LoRA and, where they are, the CTC head, the unfolder of Whisper's decoder and
    its LoRA are trainable. LoRA of the language model is on where the prompt, or the cache that continues it, holds
    speech: a prompt of text alone is answered by the base model.

    Args:
        config: the configuration.
        encoder, language_model, decoder: parts that already hold weights; what is not given is made from the
            configuration.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # Keep in float32: rounding these few MB raised the word error rate. Autocast still computes in bfloat16.
    _keep_in_fp32_modules_strict = [UNFOLDER]  # noqa: RUF012
    _no_split_modules = ["WhisperEncoderLayer", "Compressor", "DetailRecovery"]  # noqa: RUF012

    def __init__(
        self,
        config: FastSLMConfig,
        encoder: WhisperEncoder | None = None,
        language_model: PreTrainedModel | None = None,
        decoder: WhisperDecoder | None = None,
    ):
        super().__init__(config)
        self.encoder = encoder if encoder is not None else WhisperEncoder._from_config(config.audio_config)
        self.hfq_former = HFQFormer(config.hfq_config)
        # Any of transformers' causal language models; nothing but their common interface is used.
        self.language_model: Any = language_model
        if language_model is None:
            self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.projector = build_projector(config)
        if isinstance(self.projector, CTCEmbeddings):
            self.projector.read_with(self.get_input_embeddings())
            exact = (f"projector.{name}" for name, _ in self.projector.named_parameters())
            self._keep_in_fp32_modules_strict = [UNFOLDER, *exact]
        on_meta = next(self.projector.parameters()).is_meta
        add_lora(self.language_model, config)
        self.ctc_head = make_ctc_head(config)
        # Checkpoints have Whisper's decoder under the name `reader`.
        self.reader = UnfoldingDecoder(config, decoder) if config.whisper_decoder else None
        if not on_meta:
            start_hfq_former(self.hfq_former)
            mark_started(*self.trained_parts())
        self._language_model_arguments = frozenset(signature(self.language_model.forward).parameters)
        self.post_init()
        self.freeze_base()
        self.write_no_placeholders()

    def write_no_placeholders(self) -> None:
        """Let `generate` never write the audio placeholder, which means nothing outside a prompt."""
        if self.config.audio_token_id is not None:
            suppressed = {*(self.generation_config.suppress_tokens or ()), self.config.audio_token_id}
            self.generation_config.suppress_tokens = sorted(suppressed)

    @property
    def whisper_decoder(self) -> UnfoldingDecoder | None:
        """Whisper's decoder, which writes transcripts from the tokens; `None` where the checkpoint has none."""
        return self.reader

    def trained_parts(self) -> list[nn.Module]:
        """The modules of our own, all of which is trained: HFQ-Former, projector, CTC head, unfolder."""
        unfold = None if self.whisper_decoder is None else self.whisper_decoder.unfold
        return [part for part in (self.hfq_former, self.projector, self.ctc_head, unfold) if part is not None]

    def freeze_base(self) -> None:
        """The encoder and the language model's own weights take no gradient; the encoder stays in evaluation mode."""
        self.encoder.requires_grad_(False)
        self.encoder.eval()
        for part in (self.language_model, None if self.whisper_decoder is None else self.whisper_decoder.decoder):
            for name, parameter in () if part is None else part.named_parameters():
                if not is_lora_key(f".{name}"):
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "FastSLMForConditionalGeneration":
        """As in torch, but the frozen encoder and decoder of Whisper never leave evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        if self.whisper_decoder is not None:
            self.whisper_decoder.decoder.eval()
        return self

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs: Any) -> None:
        """As in transformers, without re-entry by default: the frozen embedding's output needs no gradient then."""
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if not options["use_reentrant"]:
            options.setdefault("context_fn", checkpoint_contexts)
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)
        if isinstance(self.projector, CTCEmbeddings):
            self.projector.read_with(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def encode(self, input_features: torch.Tensor) -> torch.Tensor:
        """Log-mel windows → encoder frames, without gradients.

        Args:
            input_features: (windows, mel bins, 3000), float32; cast to the encoder's dtype here and nowhere else.

        Returns:
            (windows, 1500, hidden)
        """
        dtype = self.encoder.conv1.weight.dtype
        with torch.no_grad():
            groups = input_features.to(dtype).split(WINDOWS_AT_ONCE)
            return torch.cat([self.encoder(group, return_dict=True).last_hidden_state for group in groups])

    def get_speech_tokens(
        self, input_features: torch.Tensor | None = None, encoder_frames: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the HFQ-Former makes of windows: what the projector, the CTC head and Whisper's decoder read.

        Args:
            input_features: (windows, mel bins, 3000), or
            encoder_frames: (windows, 1500, hidden), the encoder's output of before.

        Returns:
            (windows, 50, hidden)
        """
        if (input_features is None) == (encoder_frames is None):
            raise ValueError("Speech tokens come from input_features or from encoder_frames: give exactly one of them.")
        windows = input_features if encoder_frames is None else encoder_frames
        assert windows is not None

        def tokens(group: torch.Tensor) -> torch.Tensor:
            frames = self.encode(group) if encoder_frames is None else group
            return self.hfq_former(frames.to(self.hfq_former.compressor1.query.dtype))

        if torch.is_grad_enabled():
            return tokens(windows)
        return torch.cat([tokens(group) for group in windows.split(WINDOWS_AT_ONCE)])

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Speech tokens → what the language model reads: (…, tokens of a window, hidden) → (…, text hidden)."""
        return self.projector(tokens.to(next(self.projector.parameters()).dtype))

    def get_audio_features(self, input_features: torch.Tensor) -> BaseModelOutputWithPooling:
        """transformers' name for the way from log-mel to embeddings.

        Returns:
            last_hidden_state (windows, 50, hidden) and pooler_output (windows, 50, text hidden).
        """
        tokens = self.get_speech_tokens(input_features)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.project(tokens))  # type: ignore

    def embed_speech(
        self,
        input_features: torch.Tensor | None = None,
        encoder_frames: torch.Tensor | None = None,
        speech_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Whichever of the three was given → (speech tokens of the batch, text hidden); `None` without any.

        Raises:
            ValueError: more than one was given, or speech tokens of another width.
        """
        given = [x for x in (input_features, encoder_frames, speech_tokens) if x is not None]
        if len(given) > 1:
            raise ValueError(f"Speech is given more than once: pass one of {', '.join(SPEECH_INPUTS)}.")
        if not given:
            return None
        width = self.config.text_hidden_size
        if speech_tokens is None:
            return self.project(self.get_speech_tokens(input_features, encoder_frames)).reshape(-1, width)
        if speech_tokens.shape[-1] != width:
            raise ValueError(
                f"speech_tokens are {speech_tokens.shape[-1]} wide, but the language model is {width} wide: "
                "pass what embed_speech returned."
            )
        return speech_tokens.reshape(-1, width)

    def place_speech(self, input_ids: torch.Tensor, speech: torch.Tensor | None) -> torch.Tensor:
        """Embeddings of a prompt whose placeholders hold `speech`, in order of rows and places.

        Args:
            input_ids: (batch, length). speech: (placeholders in all rows, text hidden) or `None`.

        Returns:
            (batch, length, text hidden)

        Raises:
            ValueError: the number of placeholders is not that of speech embeddings.
        """
        placeholders = input_ids == self.config.audio_token_id
        # A placeholder's own embedding is never read, so it need not have one.
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        places, count = int(placeholders.sum()), 0 if speech is None else len(speech)
        if places != count:
            raise ValueError(
                f"The prompts hold {places} audio placeholders, but the audio gives {count} speech tokens: "
                "let FastSLMProcessor expand <|AUDIO|>, which makes the two equal."
            )
        if speech is None:
            return embeddings
        return embeddings.masked_scatter(placeholders[..., None], speech.to(embeddings.device, embeddings.dtype))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        encoder_frames: torch.Tensor | None = None,
        speech_tokens: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        adapter: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> FastSLMCausalLMOutputWithPast:
        """One pass over prompts, each with any number of clips.

        Positions count real tokens only: what a row gives does not depend on the rows beside it, on whichever side it
        is padded.

        Args:
            input_ids: (batch, length), with one placeholder (`config.audio_token_id`) for each speech token.
            attention_mask: (batch, length so far) of 0 and 1; needed where rows are padded.
            position_ids: (batch, length), by default counted from the attention mask.
            input_features: (windows of all rows, mel bins, 3000), or
            encoder_frames: (windows of all rows, 1500, hidden), the encoder's output of before, or
            speech_tokens: (…, text hidden), what `embed_speech` returned: as many as there are placeholders.
            labels: (batch, length), shifted in here; -100 is ignored. The loss is the mean over all labelled tokens,
                or their sum over `num_items_in_batch`, as transformers' Trainer has it.
            logits_to_keep: only the last so many positions are given logits; labels must lie among them.
            adapter: LoRA on or off; by default on where the prompt or the cache that it continues holds speech.

        Raises:
            ValueError: placeholders and speech differ in number; rows with and without speech in one batch, where
                `adapter` does not say which way to compute them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("A prompt is input_ids or inputs_embeds: give exactly one of them.")
        speech = self.embed_speech(input_features, encoder_frames, speech_tokens)
        adapter = _FORCED.on if adapter is None else adapter
        if input_ids is not None:
            if speech is not None and adapter is None:
                self._refuse_mixed_rows(input_ids)
            if speech is None and input_ids.shape[1] == 1 and past_key_values is not None:
                # One step of writing: a placeholder, if the caller allows it to be written, is a token like any other.
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.place_speech(input_ids, speech)
        elif speech is not None:
            raise ValueError("Speech needs input_ids to know its places: pass them instead of inputs_embeds.")
        assert inputs_embeds is not None
        if adapter is None:
            adapter = speech is not None or holds_speech(past_key_values)
        if position_ids is None:
            position_ids = positions(attention_mask, inputs_embeds.shape[1])
        arguments: dict[str, Any] = {
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        if "position_ids" in self._language_model_arguments:
            arguments["position_ids"] = position_ids
        if "logits_to_keep" in self._language_model_arguments:
            arguments["logits_to_keep"] = _as_places(logits_to_keep, inputs_embeds)
        with lora_switched(adapter):
            outputs = self.language_model(inputs_embeds=inputs_embeds, **arguments, **kwargs, return_dict=True)
        if adapter and outputs.past_key_values is not None:
            outputs.past_key_values.holds_speech = True
        loss = None
        if labels is not None:
            labels = labels_to_keep(labels, logits_to_keep)
            loss = self.loss_function(
                logits=outputs.logits,
                labels=labels,
                vocab_size=outputs.logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
        return FastSLMCausalLMOutputWithPast(
            loss=loss,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            speech_tokens=speech,
        )

    def _refuse_mixed_rows(self, input_ids: torch.Tensor) -> None:
        with_speech = (input_ids == self.config.audio_token_id).any(1)
        if with_speech.any() and not with_speech.all() and lora_layers(self.language_model):
            raise ValueError(
                "The batch mixes prompts with and without speech, and LoRA is on for speech only: run them apart, or "
                "pass adapter=True to have it on for all."
            )

    def letters(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the CTC head hears in tokens: (windows, 50, hidden) → (windows, steps, classes) of log-probabilities.

        Raises:
            ValueError: the model has no CTC head.
        """
        if self.ctc_head is None:
            raise ValueError("The model has no CTC head: make one with `ctc_head` in the configuration.")
        if self.config.ctc_reads == "frames":
            assert self.whisper_decoder is not None
            tokens = self.whisper_decoder.unfolded(tokens)
        return self.letters_of(tokens)

    def letters_of(self, read: torch.Tensor) -> torch.Tensor:
        """As `letters`, of what the CTC head reads: tokens, or what the unfolder made of them."""
        assert self.ctc_head is not None
        return self.ctc_head(read.to(next(self.ctc_head.parameters())))

    @contextmanager
    def adapter_forced(self, on: bool) -> Iterator[None]:
        """LoRA on or off inside the context, in this thread, whatever prompts hold; `forward`'s `adapter` overrides."""
        before, _FORCED.on = _FORCED.on, on
        try:
            yield
        finally:
            _FORCED.on = before

    def merge_lora(self) -> "FastSLMForConditionalGeneration":
        """Add LoRA into the language model's weights, in place: faster, and no longer to be switched off.

        A prompt of text alone then no longer equals the base model, and the trained part can no longer be saved alone.
        """
        merge_lora(self.language_model)
        self.config.lora_rank = 0
        self.merge_decoder_lora()
        self.config.base_encoder = self.config.base_text_model = None
        return self

    def merge_decoder_lora(self) -> "FastSLMForConditionalGeneration":
        """Add LoRA into the weights of Whisper's decoder, in place: it writes the same, faster.

        The trained part can then no longer be saved alone; nothing changes where the decoder has no LoRA.
        """
        if self.config.decoder_lora_rank:
            assert self.whisper_decoder is not None
            self.whisper_decoder.merge_lora()
            self.config.decoder_lora_rank = 0
        return self


def holds_speech(cache: Cache | None) -> bool:
    """Whether speech is part of what a cache was filled with; `forward` leaves the mark, so it survives copies."""
    return getattr(cache, "holds_speech", False)


def positions(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Positions of the last `length` places, counting real tokens only; `None` without a mask of two dimensions.

    Args:
        attention_mask: (batch, places so far) of 0 and 1.

    Returns:
        (batch, length) of int64
    """
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    counted = attention_mask.long().cumsum(-1) - 1
    return counted.clamp(min=0)[:, -length:]


def _as_places(logits_to_keep: int | torch.Tensor, embeddings: torch.Tensor) -> int | torch.Tensor:
    """Several rows' last places one by one: of a slice torch on a CPU copies the output embedding for each row."""
    rows, length = embeddings.shape[:2]
    if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep == 0 or rows == 1:
        return logits_to_keep
    return torch.arange(max(0, length - logits_to_keep), length, device=embeddings.device)


def labels_to_keep(labels: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The labels of the positions that have logits.

    Raises:
        ValueError: a label would have no logits, or positions were chosen one by one.
    """
    if isinstance(logits_to_keep, torch.Tensor):
        raise ValueError("A loss needs consecutive positions: give logits_to_keep as a number, or no labels.")
    if logits_to_keep == 0:
        return labels
    # The first kept position predicts the label after it; its own would need the position before.
    if bool((labels[:, : labels.shape[1] - logits_to_keep + 1] != -100).any()):
        raise ValueError(
            f"Labels begin before the last {logits_to_keep} positions: keep one position more than there are labels."
        )
    return labels[:, -logits_to_keep:]


AutoModel.register(FastSLMConfig, FastSLMForConditionalGeneration)
AutoModelForMultimodalLM.register(FastSLMConfig, FastSLMForConditionalGeneration)
AutoModelForSpeechSeq2Seq.register(FastSLMConfig, FastSLMForConditionalGeneration)
AutoModelForSeq2SeqLM.register(FastSLMConfig, FastSLMForConditionalGeneration)
# Of transformers' pipelines: the one that transcribes gives way to ours, which gives other models back to it; the one
# that answers chats with audio looks its models up by name, and is known to the Hub by another task as well.
_tasks = cast(dict[str, Any], PIPELINE_REGISTRY.supported_tasks)
_tasks["automatic-speech-recognition"]["impl"] = "fastslm.pipelines.TranscriptionPipeline"
_tasks.setdefault("audio-text-to-text", _tasks["any-to-any"])
cast(dict[str, str], MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)[FastSLMConfig.model_type] = (
    "FastSLMForConditionalGeneration"
)
