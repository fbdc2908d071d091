"""What a stage starts from: base weights with new parts on them, or the checkpoint of an earlier stage or another team.

Frozen weights are in the dtype that a recipe computes in; what may be trained is float32 (master weights).
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastslm.errors import CheckpointError, RecipeError
from fastslm.model.base_weights import check_decoder, grow_embeddings, load_decoder, load_encoder, load_text_model
from fastslm.model.configuration import FastSLMConfig, HFQFormerConfig
from fastslm.model.lora import is_lora_key, key_in_memory, lora_parameters, remove_lora
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.projectors import CTCEmbeddings
from fastslm.model.saving import ADDED_INPUT_ROWS, ADDED_OUTPUT_ROWS, is_trained_key
from fastslm.prompts import AUDIO_TOKEN
from fastslm.training.bases import processor_of, text_config_of
from fastslm.training.recipe import Recipe
from fastslm.weights import resolve

# A part of the state dict that starts with this is taken over from a checkpoint as a whole, or starts anew as a whole.
PARTS = {
    "hfq_former.": "model.hfq",
    "projector.": "model.projector",
    "ctc_head.": "model.ctc",
    "reader.unfold.": "model.decoder",
}


class Start:
    """The configuration of a recipe's model, known before any weight is loaded.

    Raises:
        RecipeError: its sizes or switches do not go together.
        CheckpointError: `start_from` is none, or is of another size than the recipe's model.
        WeightsError: a name cannot be found or fetched.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.earlier: FastSLMConfig | None = None
        if recipe.start_from is not None:
            self.earlier = _read_config(recipe.start_from)
        self.audio_config = self._audio_config()
        self.processor = self._processor()
        try:
            self.config = self._config()
        except ValueError as error:
            raise RecipeError(f"model: {error}") from None
        self.fresh: set[str] = set(PARTS)
        if recipe.start_from is not None:
            self._compare(recipe.start_from)

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of weights that are not trained."""
        return torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32

    @property
    def whole(self) -> bool:
        """Whether the earlier checkpoint holds its base weights itself."""
        return self.earlier is not None and self.earlier.base_encoder is None

    @property
    def encoder_name(self) -> str:
        """What keeps the encoder's frames apart from those of another one."""
        if self.whole:
            return str(self.recipe.start_from)
        random = hashlib.sha256(self.audio_config.to_json_string().encode()).hexdigest()
        return self.config.base_encoder or f"random {self.recipe.seed} {random}"

    def _audio_config(self) -> WhisperConfig:
        given = self.recipe.model.encoder
        if given is None:
            assert self.earlier is not None
            return self.earlier.audio_config
        if given.config is not None:
            return WhisperConfig(**given.config)
        return WhisperConfig.from_pretrained(resolve(given.name or ""))

    def _processor(self) -> FastSLMProcessor:
        recipe = self.recipe.model
        layout = {
            "tokens_per_window": recipe.hfq.final_tokens,
            "mel_mode": recipe.mel_mode,
            "prompt_layout": recipe.prompt_layout,
        }
        extractor = WhisperFeatureExtractor(feature_size=self.audio_config.num_mel_bins)
        if recipe.text_model is not None:
            return processor_of(self.recipe, self.audio_config.num_mel_bins)
        assert self.earlier is not None
        assert self.recipe.start_from is not None
        if (self.recipe.start_from / "processor_config.json").is_file():
            known: Any = FastSLMProcessor.from_pretrained(self.recipe.start_from)
            return FastSLMProcessor(extractor, known.tokenizer, **layout)
        return FastSLMProcessor.from_base(self.earlier.base_encoder or "", self.earlier.base_text_model or "", **layout)

    def _text_config(self) -> tuple[Any, int]:
        """The language model's, and by how many rows its embedding outgrows the base's."""
        given = self.recipe.model.text_model
        if given is None:
            assert self.earlier is not None
            return self.earlier.text_config, self.earlier.added_embeddings
        config = text_config_of(given)
        added = max(0, len(self.processor.tokenizer) - config.get_text_config().vocab_size)
        config.get_text_config().vocab_size += added
        return config, added

    def _config(self) -> FastSLMConfig:
        model, audio = self.recipe.model, self.audio_config
        text, added = self._text_config()
        earlier = self.earlier
        names = {
            key: given.name if given is not None else getattr(earlier, key)
            for key, given in (("base_encoder", model.encoder), ("base_text_model", model.text_model))
        }
        if None in names.values():
            # Random base weights have no name to be completed from, so the whole model is saved.
            names = dict.fromkeys(names)
        return own_config(
            self.recipe,
            audio,
            text,
            added_embeddings=added,
            audio_token_id=self.processor.tokenizer.convert_tokens_to_ids(AUDIO_TOKEN),
            **names,
        )

    def _compare(self, folder: Path) -> None:
        """Which parts are taken over, by what the two configurations say."""
        own, earlier = self.config, self.earlier
        assert earlier is not None
        facts: list[tuple[str, Any, Any]] = [
            ("encoder width", own.audio_config.d_model, earlier.audio_config.d_model),
            ("encoder layers", own.audio_config.encoder_layers, earlier.audio_config.encoder_layers),
            ("mel bins", own.audio_config.num_mel_bins, earlier.audio_config.num_mel_bins),
            ("language model width", own.text_hidden_size, earlier.text_hidden_size),
            *(
                (f"hfq.{key}", list(value) if isinstance(value, tuple | list) else value, found)
                for key, value in own.hfq_config.to_dict().items()
                if key in self.recipe.model.hfq.model_dump()
                and (found := getattr(earlier.hfq_config, key, None)) != value
            ),
        ]
        if own.lora_rank and earlier.lora_rank:
            facts += [
                ("lora.rank", own.lora_rank, earlier.lora_rank),
                ("lora.targets", sorted(own.lora_targets), sorted(earlier.lora_targets)),
            ]
        for what, wanted, found in facts:
            if wanted != found:
                raise CheckpointError(
                    f"start_from {folder} is a checkpoint of another size: its {what} is {found!r} and the recipe's "
                    f"{wanted!r}; set the recipe's model to the checkpoint's sizes, or start from another."
                )
        self.fresh = set()
        same_projector = own.projector == earlier.projector and own.projector_config == earlier.projector_config
        if not same_projector:
            self.fresh.add("projector.")
        ctc = ("ctc_hidden_size", "ctc_layers", "ctc_reads", "ctc_steps_per_token")
        if not earlier.ctc_head or any(getattr(own, key) != getattr(earlier, key) for key in ctc):
            self.fresh.add("ctc_head.")
        if not earlier.whisper_decoder or own.unfolder_layers != earlier.unfolder_layers:
            self.fresh.add("reader.unfold.")

    def build(self, device: torch.device) -> FastSLMForConditionalGeneration:
        """The model with all its weights, in evaluation mode.

        Raises:
            CheckpointError: weights are missing or of another size. WeightsError: they cannot be fetched.
        """
        recipe, dtype = self.recipe, self.frozen_dtype
        encoder, text_model = self._bases(dtype)
        if self.config.base_encoder is not None and recipe.model.text_model is not None:
            self._check_sizes(encoder, text_model)
        decoder = None
        if recipe.model.decoder is not None:
            decoder = load_decoder(recipe.model.decoder.base, dtype)
            check_decoder(self.config, decoder)
        torch.manual_seed(recipe.seed)
        self.config.text_config = text_model.config
        model = FastSLMForConditionalGeneration(self.config, encoder, text_model, decoder)
        model.generation_config = text_model.generation_config
        if not self.config.base_text_model and not self.whole:
            tokenizer: Any = self.processor.tokenizer
            model.generation_config.eos_token_id = tokenizer.eos_token_id
            model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.write_no_placeholders()
        for part in trained_modules(model):
            part.float()
        for parameter in _adapters(model):
            parameter.data = parameter.data.float()
        if recipe.start_from is not None:
            self._take_over(model, recipe.start_from)
        module: Any = model
        return module.to(device).eval()

    def _bases(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Encoder and language model, without LoRA."""
        model, earlier = self.recipe.model, self.earlier
        if self.whole:
            known: Any = FastSLMForConditionalGeneration.from_pretrained(self.recipe.start_from, dtype=dtype)
            text_model = remove_lora(known.language_model)
            text_model.generation_config = known.generation_config
            return known.encoder, text_model
        names = [
            given.name if given is not None else getattr(earlier, key)
            for key, given in (("base_encoder", model.encoder), ("base_text_model", model.text_model))
        ]
        torch.manual_seed(self.recipe.seed)
        encoder: Any = load_encoder(names[0], dtype) if names[0] else WhisperEncoder._from_config(self.audio_config)
        if names[1]:
            text_model = load_text_model(names[1], dtype)
            grow_embeddings(text_model, self.config.added_embeddings)
        else:
            text_model = AutoModelForCausalLM.from_config(self.config.text_config)
        return encoder.to(dtype), text_model.to(dtype)  # type: ignore[arg-type]

    def _check_sizes(self, encoder: Any, text_model: Any) -> None:
        """Sizes that a recipe states beside names must be those of the weights."""
        text = self.config.text_config.get_text_config()
        for what, wanted, found in (
            ("encoder d_model", self.audio_config.d_model, encoder.config.d_model),
            ("encoder_layers", self.audio_config.encoder_layers, encoder.config.encoder_layers),
            ("hidden_size", text.hidden_size, text_model.config.get_text_config().hidden_size),
            ("num_hidden_layers", text.num_hidden_layers, text_model.config.get_text_config().num_hidden_layers),
        ):
            if wanted != found:
                raise RecipeError(
                    f"model: the config beside the name says {what} {wanted}, and the weights have {found}; correct it."
                )

    @torch.no_grad()
    def _take_over(self, model: FastSLMForConditionalGeneration, folder: Path) -> None:
        """The trained part of the earlier checkpoint, as exactly as it was written."""
        expected = dict(model.state_dict(keep_vars=True))
        seen = set()
        embeddings = {ADDED_INPUT_ROWS: model.get_input_embeddings(), ADDED_OUTPUT_ROWS: model.get_output_embeddings()}
        for key, value in _trained_tensors(folder):
            if key in embeddings:
                rows: Any = embeddings[key].weight
                rows[-len(value) :] = value.to(rows.dtype)
            if key in expected and not key.startswith(tuple(self.fresh)):
                if expected[key].shape != value.shape:
                    raise CheckpointError(
                        f"start_from {folder} holds {key} of {tuple(value.shape)}, and the recipe's model has "
                        f"{tuple(expected[key].shape)}: set the recipe's model to the checkpoint's sizes."
                    )
                expected[key].copy_(value)
                seen.add(key)
        earlier = self.earlier
        assert earlier is not None
        # What the checkpoint should have had: LoRA where it has a rank, and every part that it does not start anew.
        kept = [prefix for prefix in PARTS if prefix not in self.fresh]
        for key in expected:
            of_lora = is_lora_key(key) and not key.startswith("reader.") and earlier.lora_rank > 0
            if key not in seen and (key.startswith(tuple(kept)) or of_lora):
                raise CheckpointError(f"start_from {folder} lacks {key}, which its configuration describes.")


def own_config(recipe: Recipe, audio: WhisperConfig, text: Any, **kwargs: Any) -> FastSLMConfig:
    """A model's configuration from a recipe and those of its base models.

    Raises:
        ValueError: sizes or switches that do not go together.
    """
    model = recipe.model
    hfq = HFQFormerConfig(hidden_size=audio.d_model, window_frames=audio.max_source_positions, **model.hfq.model_dump())
    options: dict[str, Any] = {}
    if model.ctc is not None:
        options |= {"ctc_head": True} | {f"ctc_{key}": value for key, value in model.ctc.model_dump().items()}
    if model.decoder is not None:
        options |= {
            "base_decoder": model.decoder.base,
            "unfolder_layers": model.decoder.layers,
            "decoder_lora_rank": model.decoder.lora_rank,
            "decoder_lora_alpha": model.decoder.lora_alpha,
        }
    return FastSLMConfig(
        audio_config=audio,
        hfq_config=hfq,
        text_config=text,
        projector=model.projector,
        projector_config=model.projector_config,
        lora_rank=model.lora.rank,
        lora_alpha=model.lora.alpha,
        lora_dropout=model.lora.dropout,
        lora_targets=list(model.lora.targets),
        mel_mode=model.mel_mode,
        prompt_layout=model.prompt_layout,
        capabilities=model.capabilities or {"tasks": None},
        **options,
        **kwargs,
    )


def trained_modules(model: FastSLMForConditionalGeneration) -> list[nn.Module]:
    """The modules of our own; with `_adapters`, all that can be trained."""
    return model.trained_parts()


def _adapters(model: FastSLMForConditionalGeneration) -> list[nn.Parameter]:
    decoder = model.whisper_decoder
    return lora_parameters(model.language_model) + ([] if decoder is None else lora_parameters(decoder.decoder))


def parts_of(model: FastSLMForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """The parameters that each of a recipe's rates is for."""
    projector, decoder = model.projector, model.whisper_decoder
    front: list[nn.Parameter] = []
    if isinstance(projector, CTCEmbeddings):
        front = [*projector.unfold.parameters(), *projector.head.parameters()]
    of_front = {id(parameter) for parameter in front}
    return {
        "hfq": list(model.hfq_former.parameters()),
        "projector": [own for own in projector.parameters() if id(own) not in of_front],
        "front": front,
        "lora": lora_parameters(model.language_model),
        "ctc": [] if model.ctc_head is None else list(model.ctc_head.parameters()),
        "unfolder": [] if decoder is None else list(decoder.unfold.parameters()),
        "decoder_lora": [] if decoder is None else lora_parameters(decoder.decoder),
    }


def _read_config(folder: Path) -> FastSLMConfig:
    try:
        return FastSLMConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"start_from {folder} holds no FastSLM ({first}); give the folder of a stage's model, or what "
            "fastslm import-authors wrote."
        ) from None


@contextmanager
def _opened(folder: Path) -> Iterator[list[Any]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"start_from {folder} holds no weights; give the folder of a saved model.")
    with ExitStack() as stack:
        try:
            yield [stack.enter_context(safe_open(file, "pt")) for file in files]
        except SafetensorError as error:
            raise CheckpointError(f"The weights in {folder} are damaged ({error}): save them again.") from None


def _trained_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Of either kind of checkpoint, the trained part."""
    with _opened(folder) as files:
        for file in files:
            for key in file.keys():  # noqa: SIM118  safetensors' files are no mappings
                name = key_in_memory(key)
                if is_trained_key(name) or name in (ADDED_INPUT_ROWS, ADDED_OUTPUT_ROWS):
                    yield name, file.get_tensor(key)
