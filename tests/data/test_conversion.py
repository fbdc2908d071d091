"""Manifests as cuts and Shar folders, and back: nothing that is known is lost, and audio stays where it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet

from fastslm.audio import SAMPLE_RATE
from fastslm.data.composition import Composing, compose
from fastslm.data.conversion import cuts_to_manifest, manifest_to_cuts, manifest_to_shar
from fastslm.data.cuts import read_rows
from fastslm.data.manifest import read_manifest, write_manifest
from fastslm.errors import FastSLMError, ManifestError, OptionError


def known(manifest: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["duration"] = round(row["duration"], 3)
        row.pop("audio", None)
    return rows


def test_a_manifest_becomes_cuts_and_a_manifest_again(make_manifest: Callable[..., Path], tmp_path: Path) -> None:
    manifest = make_manifest([1.0, 2.5], gender="female", accent="welsh", translation="salut", target_language="fr")
    assert manifest_to_cuts(manifest, tmp_path / "cuts.jsonl.gz") == 2
    (tmp_path / "back").mkdir()
    assert cuts_to_manifest(tmp_path / "cuts.jsonl.gz", tmp_path / "back" / "m.jsonl") == 2
    assert known(tmp_path / "back" / "m.jsonl") == known(manifest)
    for before, after in zip(read_manifest(manifest), read_manifest(tmp_path / "back" / "m.jsonl"), strict=True):
        assert after.audio_file().samefile(before.audio_file())
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["m.jsonl"], "no audio is copied"


def test_lhotse_itself_reads_what_was_written(spoken: dict[str, Path]) -> None:
    wanted = {clip.id: clip for clip in read_manifest(spoken["manifest"])}
    for cuts in (CutSet.from_file(spoken["packed"]), CutSet.from_shar(in_dir=str(spoken["shar"]))):
        found = list(cuts)
        assert sorted(cut.id for cut in found) == sorted(wanted)
        cut = min(found, key=lambda own: own.duration)
        assert cut.load_audio().shape == (1, round(cut.duration * SAMPLE_RATE))
        assert cut.supervisions[0].text == wanted[cut.id].text
        assert cut.supervisions[0].speaker == wanted[cut.id].speaker


def test_members_of_tar_shards_stay_where_they_are_there_and_back(spoken: dict[str, Path], tmp_path: Path) -> None:
    cuts_to_manifest(spoken["cuts"], tmp_path / "m.jsonl")
    found = {clip.id: clip.encoded() for clip in read_manifest(tmp_path / "m.jsonl")}
    assert found == {clip.id: clip.encoded() for clip in read_manifest(spoken["manifest"])}
    assert known(tmp_path / "m.jsonl") == known(spoken["manifest"])
    cuts_to_manifest(spoken["shar"], tmp_path / "shar.jsonl")
    assert [path.name for path in tmp_path.glob("*.tar")] == []
    assert known(tmp_path / "shar.jsonl") == known(spoken["manifest"])


def test_a_composition_is_the_same_recording_as_a_cut_and_back(
    make_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    clips = read_manifest(make_manifest([9.0, 11.0, 13.0, 8.0, 20.0]))
    write_manifest(tmp_path / "long.jsonl", compose(clips, Composing(minutes=(0.4, 1.0), count=2), tmp_path))
    manifest_to_cuts(tmp_path / "long.jsonl", tmp_path / "long.cuts.jsonl")
    before = read_rows(tmp_path / "long.jsonl").epoch([0, 0], 0)
    after = {row.id: row for row in read_rows(tmp_path / "long.cuts.jsonl").epoch([0, 0], 0)}
    for row in before:
        own = after[row.id]
        assert (own.answer, own.windows, own.language) == (row.answer, row.windows, row.language)
        waves = [np.concatenate(list(each.waveforms())) for each in (row, own)]
        assert np.abs(waves[0] - waves[1]).max() < 2e-4
    cuts_to_manifest(tmp_path / "long.cuts.jsonl", tmp_path / "back.jsonl")
    for one, two in zip(read_manifest(tmp_path / "long.jsonl"), read_manifest(tmp_path / "back.jsonl"), strict=True):
        assert [piece.id for piece in two.pieces] == [piece.id for piece in one.pieces]
        assert [piece.start for piece in two.pieces] == pytest.approx([piece.start for piece in one.pieces])
        assert (two.text, two.duration) == (one.text, pytest.approx(one.duration))
        assert (two.model_extra or {})["composed"] == "random"


def test_a_stretch_of_a_recording_is_copied_where_a_manifest_cannot_name_it(
    make_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    manifest_to_cuts(make_manifest([4.0]), tmp_path / "cuts.jsonl")
    (whole,) = CutSet.from_file(tmp_path / "cuts.jsonl")
    part = whole.truncate(offset=1.0, duration=2.0)
    CutSet.from_cuts([part]).to_file(tmp_path / "part.jsonl")
    cuts_to_manifest(tmp_path / "part.jsonl", tmp_path / "part.m.jsonl")
    (clip,) = read_manifest(tmp_path / "part.m.jsonl")
    assert clip.audio_file().name == "part.m-000.tar"
    wanted = read_manifest(tmp_path / "m.jsonl")[0].read()[SAMPLE_RATE : 3 * SAMPLE_RATE]
    assert np.abs(clip.read() - wanted).max() < 1e-4


def test_times_of_sentences_are_kept(make_manifest: Callable[..., Path], tmp_path: Path) -> None:
    segments = [{"start": 0.5, "end": 2.0, "text": "one"}, {"start": 2.5, "end": 4.0, "text": "two"}]
    manifest = make_manifest([5.0], segments=segments, text="one two")
    for convert, name in ((manifest_to_cuts, "cuts.jsonl"), (manifest_to_shar, "shar")):
        convert(manifest, tmp_path / name)
        cuts_to_manifest(tmp_path / name, tmp_path / f"{name}.m.jsonl")
        assert known(tmp_path / f"{name}.m.jsonl") == known(manifest)


def test_clips_without_text_are_cuts_too(make_manifest: Callable[..., Path], tmp_path: Path) -> None:
    manifest = make_manifest([1.0], text=None, label="rain")
    manifest_to_cuts(manifest, tmp_path / "cuts.jsonl")
    cuts_to_manifest(tmp_path / "cuts.jsonl", tmp_path / "back.jsonl")
    (clip,) = read_manifest(tmp_path / "back.jsonl")
    assert (clip.text, clip.label) == (None, "rain")


def test_what_cannot_be_written_is_one_sentence_and_nothing_is_left(
    make_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_manifest([1.0, 1.0])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OptionError, match=r"cuts are written as \.jsonl"):
        manifest_to_cuts(manifest, tmp_path / "cuts.txt")
    with pytest.raises(OptionError, match="exists already"):
        manifest_to_cuts(manifest, manifest)
    with pytest.raises(OptionError, match=r"The folder .*none does not exist"):
        manifest_to_shar(manifest, tmp_path / "none" / "shar")
    lines = manifest.read_text().splitlines()
    row = json.loads(lines[1]) | {"audio": {"path": "m1.wav", "offset": 0, "length": 99}}
    manifest.write_text(f"{lines[0]}\n{json.dumps(row)}\n")
    with pytest.raises(FastSLMError, match=r"no member of a tar archive|cannot be read as a tar archive"):
        manifest_to_cuts(manifest, tmp_path / "cuts.jsonl")
    tmp_path.joinpath("m1.wav").write_bytes(b"nothing")
    manifest.write_text("\n".join(lines))
    with pytest.raises(ManifestError, match="m1: lhotse cannot read its audio"):
        manifest_to_cuts(manifest, tmp_path / "cuts.jsonl")
    with pytest.raises(FastSLMError):
        manifest_to_shar(manifest, tmp_path / "shar")
    with pytest.raises(ManifestError, match="this is no cut"):
        cuts_to_manifest(manifest, tmp_path / "back.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
