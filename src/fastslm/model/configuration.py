"""Sizes and switches of a FastSLM. They travel with the weights, and nothing else holds a size."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, WhisperConfig

from fastslm.model.capabilities import Capabilities
from fastslm.model.old_keys import take_old_keys
from fastslm.prompts import PROMPT_LAYOUTS

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEL_MODES = ("window", "authors")
PROJECTORS = ("linear", "ctc_embeddings")
# What the CTC head writes; index 0 is its blank.
CTC_CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"


class HFQFormerConfig(PreTrainedConfig):
    """Sizes of the HFQ-Former. The defaults are the paper's at the size of Whisper large-v3.

    Args:
        hidden_size: width of the encoder's frames and of every stage, a multiple of `head_size`.
        head_size: channels of one attention head.
        window_frames: encoder frames in one 30 s window.
        stage_tokens: learned queries of the three compressors.
        final_tokens: tokens that leave for one window.
        detail_blocks: blocks of detail recovery, 0 for none.
        query_start: `random` is the paper's; `time` starts each query at the middle of its slot (ours).
        detail_positions: add time positions to the queries and keys of detail recovery's cross-attention (ours).
        detail_start: `random` is the paper's; `positional` starts every head at a fixed look within the slot (ours).
        attention_span: slots on each side that a query may see; `None`, all of them, is the paper's (ours).

    Raises:
        ValueError: a size that is not positive, a width that heads do not divide, an unknown switch.
    """

    model_type = "fastslm_hfq_former"
    base_config_key = "hfq_config"

    def __init__(
        self,
        hidden_size: int = 1280,
        head_size: int = 64,
        window_frames: int = 1500,
        stage_tokens: tuple[int, int, int] | list[int] = (80, 80, 80),
        final_tokens: int = 50,
        detail_blocks: int = 2,
        layer_norm_eps: float = 1e-5,
        query_start: str = "random",
        detail_positions: bool = False,
        detail_start: str = "random",
        attention_span: int | None = None,
        **kwargs: Any,
    ):
        self.hidden_size = hidden_size
        self.head_size = head_size
        self.window_frames = window_frames
        self.stage_tokens = list(stage_tokens)
        self.final_tokens = final_tokens
        self.detail_blocks = detail_blocks
        self.layer_norm_eps = layer_norm_eps
        self.query_start = query_start
        self.detail_positions = detail_positions
        self.detail_start = detail_start
        self.attention_span = attention_span
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        if self.hidden_size <= 0 or self.hidden_size % self.head_size or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be an even multiple of head_size {self.head_size}."
            )
        if len(self.stage_tokens) != 3 or min(self.stage_tokens) <= 0 or self.final_tokens <= 0:
            raise ValueError(
                f"stage_tokens {self.stage_tokens} and final_tokens {self.final_tokens}: three stages are needed, "
                "and every count must be at least 1."
            )
        if self.window_frames <= 0 or self.window_frames % 4:
            raise ValueError(f"window_frames is {self.window_frames}; two halvings need a positive multiple of 4.")
        if self.detail_blocks < 0:
            raise ValueError(f"detail_blocks is {self.detail_blocks}; it must be 0 (off) or more.")
        if self.query_start not in ("random", "time"):
            raise ValueError(f"query_start is {self.query_start!r}; it must be 'random' or 'time'.")
        if self.detail_start not in ("random", "positional"):
            raise ValueError(f"detail_start is {self.detail_start!r}; it must be 'random' or 'positional'.")
        if self.detail_start == "positional" and not self.detail_positions:
            raise ValueError(
                "detail_start 'positional' needs detail_positions: there is no time to start from without."
            )
        if self.detail_start == "positional" and not self.detail_blocks:
            raise ValueError("detail_start 'positional' needs detail_blocks: without any there are no looks to place.")
        if self.attention_span is not None and self.attention_span < 0:
            raise ValueError(f"attention_span is {self.attention_span}; it must be null (all) or at least 0.")

    @property
    def num_heads(self) -> int:
        """Attention heads of every part."""
        return self.hidden_size // self.head_size

    @property
    def scale_lengths(self) -> tuple[int, int, int]:
        """Frames of one window at the three time scales, 1500, 750 and 375 as published."""
        return self.window_frames, self.window_frames // 2, self.window_frames // 4


class FastSLMConfig(PreTrainedConfig):
    """Configuration of the whole model: encoder, HFQ-Former, projection, language model and its LoRA.

    Args:
        audio_config: Whisper's configuration, of which the encoder's part is used.
        hfq_config: the HFQ-Former's.
        text_config: the configuration of any model that `AutoModelForCausalLM` knows.
        base_encoder, base_text_model: names of the frozen base weights (`fastslm weights list`), a folder or a Hub id;
            `None` where the checkpoint holds all weights itself.
        projector: what makes the language model's embeddings of the tokens: `linear`, the paper's, or `ctc_embeddings`
            (ours, `model/projectors.py`).
        projector_config: sizes of a projector that is not linear.
        lora_rank, lora_alpha, lora_dropout, lora_targets: LoRA of the language model; rank 0 is none.
        mel_mode: `window`, each 30 s on its own (ours), or `authors`, one log-mel over the whole file.
        prompt_layout: `audio_first` (ours) or `task_first` (the authors').
        audio_token_id: the placeholder that speech tokens replace.
        added_embeddings: rows by which the text model's embedding outgrew the base's, because the tokenizer did.
        ctc_head: whether the checkpoint carries a CTC head (ours, `model/ctc_head.py`).
        ctc_hidden_size, ctc_layers, ctc_steps_per_token: sizes of that head.
        ctc_reads: `tokens`, in which each look has channels of its own (the tied start), or `frames`, what the unfolder
            makes of the tokens.
        whisper_decoder: whether the checkpoint carries Whisper's decoder and its unfolder, which write transcripts from
            the tokens (ours, `model/whisper_decoder.py`); given with `base_decoder`.
        base_decoder: name of that decoder's frozen base weights, as `base_encoder`.
        unfolder_layers: blocks of the unfolder.
        decoder_lora_rank, decoder_lora_alpha: LoRA of Whisper's decoder; rank 0 is none.
        capabilities: what the checkpoint has learnt (`Capabilities`, or a mapping of its attributes).
        kwargs: transformers' own, and the keys of older configurations (`model/old_keys.py`).

    Raises:
        ValueError: sizes or switches that cannot be, or do not go together.
    """

    model_type = "fastslm"
    sub_configs: ClassVar = {"audio_config": WhisperConfig, "hfq_config": HFQFormerConfig, "text_config": AutoConfig}  # type: ignore

    def __init__(
        self,
        audio_config: WhisperConfig | dict | None = None,
        hfq_config: HFQFormerConfig | dict | None = None,
        text_config: PreTrainedConfig | dict | None = None,
        base_encoder: str | None = None,
        base_text_model: str | None = None,
        projector: str = "linear",
        projector_config: dict[str, Any] | None = None,
        lora_rank: int = 16,
        lora_alpha: int = 64,
        lora_dropout: float = 0.01,
        lora_targets: list[str] | tuple[str, ...] = LORA_TARGETS,
        mel_mode: str = "window",
        prompt_layout: str = "audio_first",
        audio_token_id: int | None = None,
        added_embeddings: int = 0,
        ctc_head: bool = False,
        ctc_hidden_size: int = 256,
        ctc_layers: int = 4,
        ctc_steps_per_token: int = 24,
        ctc_reads: str = "tokens",
        whisper_decoder: bool = False,
        base_decoder: str | None = None,
        unfolder_layers: int = 3,
        decoder_lora_rank: int = 0,
        decoder_lora_alpha: int = 16,
        capabilities: Capabilities | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        arguments, learnt = take_old_keys(kwargs)
        base_decoder = arguments.get("base_decoder", base_decoder)
        capabilities = Capabilities.of(capabilities)
        if learnt:
            capabilities = Capabilities.of({**capabilities.as_dict(), **learnt})
        if isinstance(audio_config, dict):
            audio_config = WhisperConfig(**audio_config)
        if isinstance(hfq_config, dict):
            hfq_config = HFQFormerConfig(**hfq_config)
        if isinstance(text_config, dict):
            text_config = CONFIG_MAPPING[text_config.get("model_type", "llama")](**text_config)
        self.audio_config = audio_config or WhisperConfig()
        self.hfq_config = hfq_config or HFQFormerConfig(hidden_size=self.audio_config.d_model)
        self.text_config = text_config or CONFIG_MAPPING["llama"]()
        self.base_encoder = base_encoder
        self.base_text_model = base_text_model
        self.projector = projector
        self.projector_config = projector_config
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.lora_targets = list(lora_targets)
        self.mel_mode = mel_mode
        self.prompt_layout = prompt_layout
        self.audio_token_id = audio_token_id
        self.added_embeddings = added_embeddings
        self.ctc_head = ctc_head
        self.ctc_hidden_size = ctc_hidden_size
        self.ctc_layers = ctc_layers
        self.ctc_steps_per_token = ctc_steps_per_token
        self.ctc_reads = ctc_reads
        self.whisper_decoder = whisper_decoder or base_decoder is not None
        self.base_decoder = base_decoder
        self.unfolder_layers = arguments.get("unfolder_layers", unfolder_layers)
        self.decoder_lora_rank = arguments.get("decoder_lora_rank", decoder_lora_rank)
        self.decoder_lora_alpha = arguments.get("decoder_lora_alpha", decoder_lora_alpha)
        self.capabilities = capabilities
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        for key, allowed in (("mel_mode", MEL_MODES), ("prompt_layout", PROMPT_LAYOUTS), ("projector", PROJECTORS)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} is {getattr(self, key)!r}; it must be one of {', '.join(allowed)}.")
        if self.projector == "linear" and self.projector_config:
            raise ValueError("projector_config does nothing for the projector linear: leave it out.")
        if self.ctc_reads not in ("tokens", "frames"):
            raise ValueError(f"ctc_reads is {self.ctc_reads!r}; it must be 'tokens' or 'frames'.")
        learnt = self.capabilities
        if not self.whisper_decoder:
            for wanted, what in (
                (self.decoder_lora_rank, "decoder_lora_rank"),
                (self.ctc_head and self.ctc_reads == "frames", "ctc_reads 'frames'"),
                (learnt.decoder == "whisper", "decoder 'whisper'"),
                (learnt.via == "transcript", "via 'transcript'"),
            ):
                if wanted:
                    raise ValueError(f"{what} needs Whisper's decoder and its unfolder: give base_decoder.")
        if learnt.decoder == "ctc" and not self.ctc_head:
            raise ValueError("decoder 'ctc' needs ctc_head, which writes then: give both.")
        if self.hfq_config.hidden_size != self.audio_config.d_model:
            raise ValueError(
                f"The HFQ-Former is {self.hfq_config.hidden_size} wide and the encoder {self.audio_config.d_model}; "
                "the two must be equal."
            )

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without the folders of this machine that the base configurations came from."""
        content = super().to_dict()
        for part in ("audio_config", "hfq_config", "text_config"):
            if isinstance(content.get(part), dict):
                content[part].pop("_name_or_path", None)
        content["capabilities"] = self.capabilities.as_dict()
        return content

    @property
    def text_hidden_size(self) -> int:
        """Width of the language model's embeddings."""
        return self.text_config.get_text_config().hidden_size

    @property
    def tokens_per_window(self) -> int:
        """Speech tokens of one 30 s window."""
        return self.hfq_config.final_tokens


AutoConfig.register(FastSLMConfig.model_type, FastSLMConfig)
AutoConfig.register(HFQFormerConfig.model_type, HFQFormerConfig)
