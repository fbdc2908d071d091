"""A model between two checkpoints of one training: each weight so far on the way from the first to the second.

    python recipes/tiny/between.py FIRST SECOND OUT [--share 0.7] [--decoder 0.5]

FIRST is where the training of SECOND began. LoRA of Whisper's decoder, which FIRST need not have, is scaled by itself.
What comes of it is measured by `fastslm evaluate asr --model OUT`.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from fastslm.model.saving import written_beside

WEIGHTS = "model.safetensors"


def main() -> None:
    """Read both, write what lies between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.7, help="of the way to the second; 1 is the second")
    parser.add_argument("--decoder", type=float, default=0.5, help="the same of LoRA of Whisper's decoder")
    given = parser.parse_args()
    first, second = load_file(given.first / WEIGHTS), load_file(given.second / WEIGHTS)
    between = {}
    for key, value in second.items():
        if key.startswith("reader.decoder."):
            # The product is linear in B alone.
            moved = value.float() * given.decoder if ".lora_B." in key else value
        else:
            moved = first[key].float().lerp(value.float(), given.share)
        between[key] = moved.to(value.dtype).contiguous()
    with written_beside(given.out) as folder:
        shutil.copytree(given.second, folder, dirs_exist_ok=True)
        save_file(between, folder / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
