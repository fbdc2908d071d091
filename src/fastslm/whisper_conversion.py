"""A Whisper model of CTranslate2 (`model.bin`) in the layout of transformers.

The file format is CTranslate2's binary version 6: a header, the variables one after another, and aliases, all little
endian. Only numpy reads it here, so CTranslate2 itself need not be installed.
"""

import json
import struct
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from fastslm.errors import WeightsError

BINARY_VERSION = 6
SPECIFICATION = "WhisperSpec"
# In the order of CTranslate2's DataType; bfloat16, the last of them, has no numpy type and is refused.
DTYPES = ("float32", "int8", "int16", "int32", "float16")

# Whisper's English-only vocabulary: GPT-2's, then these, then a token for each 20 ms from 0.00 to 30.00.
END_OF_TEXT = "<|endoftext|>"
START_OF_TRANSCRIPT = "<|startoftranscript|>"
START_OF_PREVIOUS = "<|startofprev|>"
NO_TIMESTAMPS = "<|notimestamps|>"


def read_ctranslate2(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Every variable of a CTranslate2 `model.bin` by its name, aliases included.

    Raises:
        WeightsError: the file is cut off, or is not a Whisper model of the binary version that is understood.
    """
    try:
        with open(path, "rb") as file:
            (version,) = struct.unpack("<I", _exactly(file, 4))
            if version != BINARY_VERSION:
                raise WeightsError(
                    f"{path} has CTranslate2's binary version {version}, where {BINARY_VERSION} is understood: convert "
                    "the model again with ctranslate2 4, or use a folder in the layout of transformers."
                )
            specification = _string(file)
            if specification != SPECIFICATION:
                raise WeightsError(
                    f"{path} holds a {specification}, where {SPECIFICATION} is needed: name a Whisper model."
                )
            _revision, count = struct.unpack("<II", _exactly(file, 8))
            variables = dict(_variable(file, path) for _ in range(count))
            (aliases,) = struct.unpack("<I", _exactly(file, 4))
            for _ in range(aliases):
                alias = _string(file)
                variables[alias] = variables[_string(file)]
    except EOFError:
        raise WeightsError(f"{path} ends before its last variable: fetch it again.") from None
    return variables


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<H", _exactly(file, 2))
    return _exactly(file, size).rstrip(b"\0").decode()


def _variable(file: BinaryIO, path: str | PathLike[str]) -> tuple[str, np.ndarray]:
    name = _string(file)
    (rank,) = _exactly(file, 1)
    shape = struct.unpack(f"<{rank}I", _exactly(file, 4 * rank))
    (dtype,) = _exactly(file, 1)
    (size,) = struct.unpack("<I", _exactly(file, 4))
    if dtype >= len(DTYPES):
        raise WeightsError(
            f"{path} holds {name} in CTranslate2's type {dtype}, where {', '.join(DTYPES)} are understood: convert the "
            "model again with --quantization float16."
        )
    return name, np.frombuffer(_exactly(file, size), DTYPES[dtype]).reshape(shape)


def whisper_state_dict(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CTranslate2's variables under the names of transformers' `WhisperForConditionalGeneration`, in the stored dtype.

    CTranslate2 stacks the query, key and value projections of self-attention, and key and value of cross-attention, in
    one matrix of (3 or 2 × hidden, hidden). It also stores a key bias, which is zero: Whisper's key projections have
    none. `proj_out` is left out, since transformers ties it to the embeddings of the decoder.
    """
    state: dict[str, np.ndarray] = {}

    def norm(source: str, target: str) -> None:
        state[f"{target}.weight"] = variables[f"{source}/gamma"]
        state[f"{target}.bias"] = variables[f"{source}/beta"]

    def linear(source: str, *targets: str) -> None:
        weights = np.split(variables[f"{source}/weight"], len(targets))
        biases = np.split(variables[f"{source}/bias"], len(targets))
        for target, weight, bias in zip(targets, weights, biases, strict=True):
            state[f"{target}.weight"] = weight
            if not target.endswith("k_proj"):
                state[f"{target}.bias"] = bias

    for convolution in ("conv1", "conv2"):
        linear(f"encoder/{convolution}", f"model.encoder.{convolution}")
    state["model.decoder.embed_tokens.weight"] = variables["decoder/embeddings/weight"]
    for stack in ("encoder", "decoder"):
        state[f"model.{stack}.embed_positions.weight"] = variables[f"{stack}/position_encodings/encodings"]
        norm(f"{stack}/layer_norm", f"model.{stack}.layer_norm")
        for index in range(_layers(variables, stack)):
            source, target = f"{stack}/layer_{index}", f"model.{stack}.layers.{index}"
            attention = f"{target}.self_attn"
            linear(f"{source}/self_attention/linear_0", *(f"{attention}.{part}_proj" for part in "qkv"))
            linear(f"{source}/self_attention/linear_1", f"{attention}.out_proj")
            norm(f"{source}/self_attention/layer_norm", f"{attention}_layer_norm")
            if stack == "decoder":
                attention = f"{target}.encoder_attn"
                linear(f"{source}/attention/linear_0", f"{attention}.q_proj")
                linear(f"{source}/attention/linear_1", *(f"{attention}.{part}_proj" for part in "kv"))
                linear(f"{source}/attention/linear_2", f"{attention}.out_proj")
                norm(f"{source}/attention/layer_norm", f"{attention}_layer_norm")
            linear(f"{source}/ffn/linear_0", f"{target}.fc1")
            linear(f"{source}/ffn/linear_1", f"{target}.fc2")
            norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    return state


def _layers(variables: dict[str, np.ndarray], stack: str) -> int:
    return sum(name.startswith(f"{stack}/layer_") and name.endswith("/ffn/linear_0/weight") for name in variables)


def convert_whisper(source: Path, target: Path) -> None:
    """Write the English-only CTranslate2 Whisper of folder `source` as a folder that transformers loads.

    `source` holds `model.bin`, `config.json` and `tokenizer.json`, as faster-whisper's converted models do. The tensors
    keep their float16, which loses nothing; `config.json` asks for float32, so that a plain `from_pretrained` computes
    as the model of OpenAI does on a CPU. `target` must exist.

    Raises:
        WeightsError: `model.bin` is not understood, or is quantised.
    """
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperProcessor

    variables = read_ctranslate2(source / "model.bin")
    state = whisper_state_dict(variables)
    if not all(np.issubdtype(tensor.dtype, np.floating) for tensor in state.values()):
        raise WeightsError(
            f"{source / 'model.bin'} is quantised to integers: convert the model again with --quantization float16."
        )
    tokenizer = _tokenizer(source, vocabulary := len(state["model.decoder.embed_tokens.weight"]))
    hints = json.loads((source / "config.json").read_text(encoding="utf-8"))
    end, start = (tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TEXT, START_OF_TRANSCRIPT))
    special = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    hidden, mel_bins, _kernel = state["model.encoder.conv1.weight"].shape
    frames = len(state["model.encoder.embed_positions.weight"])
    tokens = len(state["model.decoder.embed_positions.weight"])
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=mel_bins,
        d_model=hidden,
        encoder_layers=_layers(variables, "encoder"),
        decoder_layers=_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=len(state["model.encoder.layers.0.fc1.weight"]),
        decoder_ffn_dim=len(state["model.decoder.layers.0.fc1.weight"]),
        max_source_positions=frames,
        max_target_positions=tokens,
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
        **special,
    )
    generation = GenerationConfig(
        max_length=tokens,
        is_multilingual=False,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids(NO_TIMESTAMPS),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids(START_OF_PREVIOUS),
        return_timestamps=False,
        # Whisper's rule: a first timestamp is at most one second in, and a timestamp stands for 20 ms.
        max_initial_timestamp_index=50,
        suppress_tokens=hints["suppress_ids"],
        begin_suppress_tokens=hints["suppress_ids_begin"],
        alignment_heads=hints["alignment_heads"],
        **special,
    )
    WhisperProcessor(WhisperFeatureExtractor(feature_size=mel_bins), tokenizer).save_pretrained(target)
    config.save_pretrained(target)
    generation.save_pretrained(target)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in state.items()}
    save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})


def _tokenizer(source: Path, vocabulary: int):
    """The tokenizer of the folder, and what faster-whisper leaves out: timestamps, and which tokens are special."""
    from tokenizers import AddedToken
    from transformers import WhisperTokenizer

    added = sorted(WhisperTokenizer.from_pretrained(source).added_tokens_decoder.items())
    special = [str(token) for _, token in added if token.special and str(token) != END_OF_TEXT]
    # transformers takes what follows the last of these for timestamps when it decodes them.
    tokenizer = WhisperTokenizer.from_pretrained(source, extra_special_tokens=special)
    first, seconds = len(tokenizer), 0.02
    timestamps = (f"<|{index * seconds:.2f}|>" for index in range(vocabulary - first))
    # Not special, as in OpenAI's own published tokenizer.
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in timestamps])
    return tokenizer
