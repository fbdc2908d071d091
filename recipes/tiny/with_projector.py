"""Put a trained projector into fastslm-tiny: the model that `hear.yaml` ends with, without training it again.

    python recipes/tiny/with_projector.py checkpoints/fastslm-tiny \\
        checkpoints/tiny-hear/projector.safetensors runs/tiny-hear/model
    fastslm evaluate asr --model runs/tiny-hear/model --decoder llm --manifest ../shared/data/librispeech/test.jsonl

The file holds what was trained, in 8 bits: each matrix as int8 with one scale a row, everything else in float16. The
front of the projector, an unfolder and a CTC head, was frozen while it trained, so it is copied from the model itself.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import fastslm
from fastslm import FastSLMForConditionalGeneration, FastSLMProcessor
from fastslm.errors import CheckpointError
from fastslm.model.capabilities import Capabilities
from fastslm.model.projectors import CTCEmbeddings

SCALE = ".scale"
FRONT = ("unfold.", "head.")


def pack(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A projector's state without its front, in 8 bits: a tenth of a megabyte for each hundred thousand weights."""
    packed: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if key.startswith(FRONT):
            continue
        if value.is_floating_point() and value.ndim >= 2 and min(value.shape[:2]) > 1:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127
            packed[key] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
            packed[key + SCALE] = scale
        else:
            packed[key] = value.half() if value.is_floating_point() else value.int()
    return {key: value.contiguous() for key, value in packed.items()}


def unpack(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state again, in float32."""
    state: dict[str, torch.Tensor] = {}
    for key, value in packed.items():
        if key.endswith(SCALE):
            continue
        if value.dtype is torch.int8:
            scale = packed[key + SCALE]
            state[key] = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        else:
            state[key] = value.float() if value.is_floating_point() else value.long()
    return state


def with_projector(model_name: str, projector: Path, out: Path) -> None:
    """Write the model with its new projector as a folder that `fastslm.load` and `start_from` take.

    Raises:
        CheckpointError: the projector's sizes are not those of the model.
    """
    model: Any = FastSLMForConditionalGeneration.from_pretrained(model_name, dtype=torch.float32)
    processor, state = FastSLMProcessor.from_pretrained(model_name), unpack(load_file(projector))
    decoder, config = model.whisper_decoder, model.config
    if decoder is None or model.ctc_head is None:
        raise CheckpointError(f"{model_name} has no unfolder and CTC head to copy: give checkpoints/fastslm-tiny.")
    layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    config.projector = "ctc_embeddings"
    # As recipes/tiny/base.yaml has it: a stage that says otherwise begins with a projector of its own.
    config.projector_config = {
        "kinds": len(state["kinds"]),
        "hidden_size": len(state["norm.weight"]),
        "layers": layers,
        "unfolder_layers": config.unfolder_layers,
        "front_size": config.ctc_hidden_size,
        "front_layers": config.ctc_layers,
    }
    # It answers from what it hears; which tasks it has learnt that way is what the stages after this one are for.
    spoken = config.capabilities.languages
    config.capabilities = Capabilities(languages=spoken, decoder="whisper", via="speech", tasks=("transcribe",))
    made = CTCEmbeddings(config)
    made.unfold.load_state_dict(decoder.unfold.state_dict())
    made.head.load_state_dict(model.ctc_head.state_dict())
    missing, unexpected = made.load_state_dict(state, strict=False)
    if unexpected or any(not key.startswith(FRONT) for key in missing):
        raise CheckpointError(f"{projector} is no projector of this model: {[*unexpected, *missing][:3]} do not fit.")
    made.read_with(model.get_input_embeddings())
    model.projector = made
    model.save_trained(out, torch.float16)
    processor.save_pretrained(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("projector", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pack", action="store_true", help="the other way: keep the projector of MODEL in PROJECTOR")
    given = parser.parse_args()
    if given.pack:
        given.projector.parent.mkdir(parents=True, exist_ok=True)
        save_file(pack(fastslm.load(given.model, quiet=True).model.projector.state_dict()), given.projector)
    else:
        with_projector(given.model, given.projector, given.out)


if __name__ == "__main__":
    main()
