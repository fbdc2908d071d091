"""A model that is saved whole needs nothing but its folder: no cache, no name of base weights, no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_fastslm import MakeCheckpoint, make_checkpoint, noise

from fastslm.errors import CheckpointError
from fastslm.loading import load
from fastslm.model.modeling import FastSLMForConditionalGeneration as Model
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.whisper_decoder import DECODER_FILES

__all__ = ["make_checkpoint"]

ALONE = """
import json, socket, sys
import numpy as np, torch
torch.set_num_threads(1)
def refuse(*_): raise OSError("no network in this test")
socket.socket.connect = socket.getaddrinfo = refuse
import fastslm
from fastslm.evaluation.systems import FastSLMSystem
model = fastslm.load(sys.argv[1], device="cpu", dtype="float32", quiet=True)
sound = np.load(sys.argv[2])
said = {"answer": model.ask(sound, "Who?", max_new_tokens=4).text, "fingerprint": model.fingerprint}
for decoder in ("ctc", "whisper", "llm"):
    budget = {} if decoder == "ctc" else {"max_new_tokens": 6}
    said[decoder] = model.transcribe(sound, reader=decoder, **budget).text
model.model.save_pretrained(sys.argv[3])
print(json.dumps(said))
"""
VIA_TRANSCRIPT = {"decoder": "whisper", "via": "transcript", "tasks": None}


@pytest.fixture(scope="module")
def trained(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(reader=True, decoder_lora_rank=2, capabilities=VIA_TRANSCRIPT)


def test_a_folder_alone_says_what_the_model_said(trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "sound.npy", noise(1.5))
    model = Model.from_pretrained(trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("reader", "ctc_head")) and parameter.dim() == 2 and "context" not in name:
                parameter.normal_(0.0, 0.4)
    model.save_pretrained(tmp_path / "whole")
    FastSLMProcessor.from_pretrained(trained).save_pretrained(tmp_path / "whole")
    loaded = load(tmp_path / "whole", device="cpu", dtype="float32", quiet=True)
    names = [json.loads((trained / "config.json").read_text())[f"base_{of}"] for of in ("encoder", "text_model")]
    for file in (tmp_path / "whole").rglob("*.json"):
        assert not any(name in file.read_text(encoding="utf-8") for name in names), file
    home = tmp_path / "home"
    home.mkdir()
    empty = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "FASTSLM_CACHE", "HF_HOME"), str(home))
    command = [sys.executable, "-c", ALONE, tmp_path / "whole", tmp_path / "sound.npy", tmp_path / "again"]
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **empty}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["answer"] == loaded.ask(noise(1.5), "Who?", max_new_tokens=4).text
    assert said["ctc"] == loaded.transcribe(noise(1.5), reader="ctc").text
    for decoder in ("whisper", "llm"):
        assert said[decoder] == loaded.transcribe(noise(1.5), reader=decoder, max_new_tokens=6).text
    assert said["whisper"]
    assert said["fingerprint"] == loaded.fingerprint
    # Saved again by the model that knew nothing but the folder, it is as complete.
    saved = [
        {str(file.relative_to(root)) for file in root.rglob("*")} for root in (tmp_path / "whole", tmp_path / "again")
    ]
    assert {name for name in saved[0] if name.startswith((DECODER_FILES, "config", "model"))} <= saved[1]


def test_tensors_have_the_keys_that_they_always_had(trained: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    Model.from_pretrained(trained).save_pretrained(tmp_path / "whole")
    for folder, heads in (
        (trained, {"hfq_former", "projector", "ctc_head", "reader", "language_model", "added_embeddings"}),
        (tmp_path / "whole", {"encoder", "hfq_former", "projector", "ctc_head", "reader", "language_model"}),
    ):
        with safe_open(folder / "model.safetensors", "pt") as file:
            keys = set(file.keys())
        assert {key.split(".")[0] for key in keys} == heads
        lora = "reader.decoder.layers.0.self_attn.q_proj.lora_A.default.weight"
        assert {"projector.weight", "projector.bias", "reader.unfold.spread.weight", lora} <= keys


def test_a_push_to_the_hub_takes_everything_along(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[set[str]] = []

    def upload(self: Any, working_dir: str, repo_id: str, files_timestamps: dict[str, float], **_: Any) -> None:
        found = (str(file.relative_to(working_dir)) for file in Path(working_dir).rglob("*") if file.is_file())
        pushed.append({name for name in found if name not in files_timestamps})

    monkeypatch.setattr(Model, "_upload_modified_files", upload)
    hub = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr("transformers.modeling_utils.hf_api", lambda: hub)
    card = SimpleNamespace(save=lambda file: None)
    monkeypatch.setattr("transformers.modeling_utils.create_and_tag_model_card", lambda *_, **__: card)
    model = Model.from_pretrained(trained)
    (tmp_path / "saved" / DECODER_FILES).mkdir(parents=True)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/mine")
    needed = {"config.json", "model.safetensors", f"{DECODER_FILES}/tokenizer.json"}
    assert needed | {f"{DECODER_FILES}/generation_config.json"} <= pushed[0]


def test_a_folder_without_the_decoders_files_says_so(trained: Path, tmp_path: Path) -> None:
    Model.from_pretrained(trained).save_pretrained(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / DECODER_FILES)
    model = Model.from_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"whisper_decoder.*save_pretrained") as caught:
        model.whisper_decoder.read(torch.zeros(1, 50, model.config.hfq_config.hidden_size), 3)
    assert str(caught.value).count(". ") == 0


def test_a_trained_part_whose_decoder_has_no_base_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "trained")
    file = tmp_path / "trained" / "config.json"
    content = {**json.loads(file.read_text()), "base_decoder": None, "whisper_decoder": True}
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="names no base_decoder"):
        Model.from_pretrained(tmp_path / "trained")
