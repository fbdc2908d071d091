"""Sizes and switches of a FastSLM. They travel with the weights, and nothing else holds a size."""

import math
from numbers import Real
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, WhisperConfig

from fastslm.audio import WINDOW_SECONDS
from fastslm.prompts import PROMPT_LAYOUTS

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEL_MODES = ("window", "authors")
TRANSCRIPT_READERS = ("ctc", "whisper", "llm")
ANSWERING_TASKS = ("translate", "summarize", "ask")
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
        lora_rank, lora_alpha, lora_dropout, lora_targets: LoRA of the language model; rank 0 is none.
        mel_mode: `window`, each 30 s on its own (ours), or `authors`, one log-mel over the whole file.
        prompt_layout: `audio_first` (ours) or `task_first` (the authors').
        audio_token_id: the placeholder that speech tokens replace.
        added_embeddings: rows by which the text model's embedding outgrew the base's, because the tokenizer did.
        ctc_head: whether the checkpoint carries a CTC head (ours, architecture.md "the tied start").
        ctc_hidden_size, ctc_layers, ctc_steps_per_token: sizes of that head.
        ctc_reads: `tokens`, in which each look has channels of its own (the tied start), or `frames`, what the unfolder
            makes of the tokens.
        reader_base: the Whisper checkpoint whose decoder reads the speech tokens through an unfolder (ours,
            `model/whisper_reader.py`); `None` is without.
        reader_layers: blocks of that unfolder.
        reader_lora_rank, reader_lora_alpha: LoRA of that decoder; rank 0 is none.
        heard_words: whether the projection adds the embeddings of the words that Whisper's decoder reads in the tokens
            (ours, `model/heard_words.py`); needs reader_base.
        words_base: the base text model whose tokenizer cuts those words.
        transcript_reader: what reads the speech tokens best, `ctc`, `whisper` or `llm`; `None`: the CTC head, if any.
        llm_reads_speech: whether the language model has learnt to read speech tokens; where not, results say so.
        llm_tasks: the tasks that it has learnt; `None` is all of them. Results of others say so.
        translates_into: codes of the languages that it has learnt to translate into; `None` is all. Results in others
            say so.
        taught_with: of a task, what alone it was taught with, in words that end a sentence: "The language model has
            learnt to translate from …". Its results say so.
        taught_seconds: of `translate`, `summarize` and `ask` the longest recording that answers were taught from,
            counted in windows of 30 s; longer ones are read in parts of that where nothing else is asked for. `None`,
            or a task that is not in it, is any length that the language model has positions for.
        languages: codes of what the model was trained to transcribe, the default first.
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
        reader_base: str | None = None,
        reader_layers: int = 3,
        reader_lora_rank: int = 0,
        reader_lora_alpha: int = 16,
        heard_words: bool = False,
        words_base: str | None = None,
        transcript_reader: str | None = None,
        llm_reads_speech: bool = False,
        llm_tasks: list[str] | tuple[str, ...] | None = None,
        translates_into: list[str] | tuple[str, ...] | None = None,
        taught_with: dict[str, str] | None = None,
        taught_seconds: dict[str, float] | None = None,
        languages: list[str] | tuple[str, ...] = ("en",),
        **kwargs: Any,
    ):
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
        self.reader_base = reader_base
        self.reader_layers = reader_layers
        self.reader_lora_rank = reader_lora_rank
        self.reader_lora_alpha = reader_lora_alpha
        self.heard_words = heard_words
        self.words_base = words_base
        self.transcript_reader = transcript_reader
        self.llm_reads_speech = llm_reads_speech
        self.llm_tasks = None if llm_tasks is None else list(llm_tasks)
        self.translates_into = None if translates_into is None else list(translates_into)
        self.taught_with = taught_with
        self.taught_seconds = taught_seconds
        self.languages = list(languages)
        super().__init__(**kwargs)
        if mel_mode not in MEL_MODES:
            raise ValueError(f"mel_mode is {mel_mode!r}; it must be one of {', '.join(MEL_MODES)}.")
        if prompt_layout not in PROMPT_LAYOUTS:
            raise ValueError(f"prompt_layout is {prompt_layout!r}; it must be one of {', '.join(PROMPT_LAYOUTS)}.")
        if ctc_reads not in ("tokens", "frames"):
            raise ValueError(f"ctc_reads is {ctc_reads!r}; it must be 'tokens' or 'frames'.")
        if heard_words and (reader_base is None or words_base is None):
            raise ValueError("heard_words needs reader_base, which hears the words, and words_base, which cuts them.")
        if reader_lora_rank and reader_base is None:
            raise ValueError("reader_lora_rank needs reader_base, whose decoder has the LoRA: give both.")
        if ctc_head and ctc_reads == "frames" and reader_base is None:
            raise ValueError("ctc_reads 'frames' needs reader_base: without an unfolder there are no frames.")
        if transcript_reader not in (None, *TRANSCRIPT_READERS):
            raise ValueError(
                f"transcript_reader is {transcript_reader!r}; it must be null or one of "
                f"{', '.join(TRANSCRIPT_READERS)}."
            )
        if transcript_reader == "whisper" and reader_base is None:
            raise ValueError("transcript_reader 'whisper' needs reader_base, whose decoder reads: give both.")
        if transcript_reader == "ctc" and not ctc_head:
            raise ValueError("transcript_reader 'ctc' needs ctc_head, which reads: give both.")
        if not isinstance(taught_seconds, dict | None):
            raise ValueError(f"taught_seconds is {taught_seconds!r}; it must give each task its seconds, or be null.")
        for task, seconds in (taught_seconds or {}).items():
            number = isinstance(seconds, Real) and not isinstance(seconds, bool)
            if task not in ANSWERING_TASKS or not number or not WINDOW_SECONDS <= seconds < math.inf:
                raise ValueError(
                    f"taught_seconds has {task!r}: {seconds!r}; it must give {', '.join(ANSWERING_TASKS)} seconds, "
                    f"{WINDOW_SECONDS} or more."
                )
        if not self.languages:
            raise ValueError("languages is empty; it must name at least one code, such as en.")
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
        return content

    @property
    def tokens_per_window(self) -> int:
        """Speech tokens of one 30 s window."""
        return self.hfq_config.final_tokens


AutoConfig.register(FastSLMConfig.model_type, FastSLMConfig)
AutoConfig.register(HFQFormerConfig.model_type, HFQFormerConfig)
