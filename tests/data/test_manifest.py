"""Manifests: every line is a clip, or the sentence that names the line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastslm.data.manifest import manifest_digest, read_manifest, write_manifest
from fastslm.data.tasks import synthesize
from fastslm.errors import ManifestError

GOOD = {"id": "a", "audio": "a.wav", "duration": 1.5, "text": "hello"}


def manifest(folder: Path, *rows: Any) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_unknown_keys_are_kept_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    clips = read_manifest(manifest(tmp_path, {**GOOD, "accent": "welsh"}, "", {**GOOD, "id": "b", "text": None}))
    assert [clip.id for clip in clips] == ["a", "b"]
    assert clips[0].model_extra == {"accent": "welsh"}
    assert clips[1].text is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "line 2: this is not JSON"),
        ({"id": "b", "duration": 1.0}, "line 2: audio"),
        ({**GOOD, "id": "b", "duration": 0}, "line 2: duration"),
        ({**GOOD, "id": "b", "duration": -3.0}, "line 2: duration"),
        ({**GOOD, "id": "b", "duration": math.nan}, "line 2: duration"),
        ({**GOOD, "id": "b", "audio": {"path": "x", "offest": 3}}, "line 2: audio.offest"),
        ({**GOOD, "id": "b", "audio": {"path": "x", "length": 3}}, "line 2: audio: a length without an offset"),
        ({**GOOD, "id": "b", "audio": None}, "line 2: audio is null"),
        ({**GOOD, "id": "b", "audio": None, "translation": "salut", "text": " "}, "line 2: audio is null"),
        ({**GOOD, "id": "b", "segments": [{"start": 0, "end": 1, "audio": "b.wav"}]}, "line 2: both the row and"),
        ({**GOOD, "id": "b", "segments": [{"start": 1, "end": 1}]}, "line 2: segments.0: it ends at"),
        ({**GOOD, "id": "b", "task": "transcribe"}, "line 2: task, instruction and answer belong together"),
        ({**GOOD, "id": "b", "task": "sing", "instruction": "Sing.", "answer": "la"}, "line 2: task"),
        ({**GOOD, "id": "b", "label_kind": "guess"}, "line 2: label_kind"),
        (GOOD, "line 2: the id a occurs twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        read_manifest(manifest(tmp_path, GOOD, line))


def test_a_file_that_is_missing_empty_or_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="is empty"):
        read_manifest(manifest(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}\n')
    with pytest.raises(ManifestError, match=r"line 1: this is not UTF-8"):
        read_manifest(tmp_path / "latin.jsonl")


def test_a_byte_range_of_a_shard_reads_as_its_own_recording(tmp_path: Path, encode: Any, tone: Any) -> None:
    recordings = [encode(tmp_path / f"{f}.wav", tone(0.5, frequency=f)).read_bytes() for f in (220.0, 880.0)]
    (tmp_path / "shard.tar").write_bytes(b"head" + b"".join(recordings))
    offset = 4 + len(recordings[0])
    reference = {"path": "shard.tar", "offset": offset, "length": len(recordings[1])}
    clips = read_manifest(manifest(tmp_path, {**GOOD, "audio": reference}, {**GOOD, "id": "b", "audio": "880.0.wav"}))
    np.testing.assert_array_equal(clips[0].read(), clips[1].read())
    assert len(clips[0].read()) == 8000


def test_audio_is_looked_for_beside_the_manifest_and_one_folder_up(tmp_path: Path, encode: Any, tone: Any) -> None:
    encode(tmp_path / "a.wav", tone(0.25))
    (tmp_path / "lists").mkdir()
    (clip,) = read_manifest(manifest(tmp_path / "lists", GOOD))
    assert clip.audio_file() == tmp_path / "a.wav"
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ManifestError, match=r"a: its audio a\.wav is neither"):
        clip.audio_file()


def test_the_digest_changes_with_a_byte(tmp_path: Path) -> None:
    before = manifest_digest(manifest(tmp_path, GOOD))
    assert manifest_digest(manifest(tmp_path, GOOD)) == before
    assert manifest_digest(manifest(tmp_path, {**GOOD, "text": "hullo"})) != before


def test_a_row_written_into_another_folder_names_the_same_audio(tmp_path: Path, encode: Any, tone: Any) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "lists" / "deep").mkdir(parents=True)
    encode(tmp_path / "corpus" / "a.wav", tone(1.5))
    segment = {"start": 0.25, "end": 1.75, "id": "a", "audio": "a.wav", "text": "hello"}
    rows = [{**GOOD, "accent": "welsh"}, {"id": "c", "audio": None, "duration": 1.75, "segments": [segment]}]
    before = read_manifest(manifest(tmp_path / "corpus", *rows))
    target = tmp_path / "lists" / "deep" / "copy.jsonl"
    assert write_manifest(target, (clip.row(target.parent) for clip in before)) == 2
    after = read_manifest(target)
    for old, new in zip(before, after, strict=True):
        new.check_audio()
        np.testing.assert_array_equal(old.read(), new.read())
    assert after[0].model_extra == {"accent": "welsh"}
    assert after[0].text == "hello"
    assert after[1].pieces[0].text == "hello"


def test_text_alone_is_a_row_that_sounds_nowhere(tmp_path: Path) -> None:
    spoken = {**GOOD, "audio": None, "translation": "salut", "target_language": "fr"}
    task = {**GOOD, "id": "b", "audio": None, "task": "ask", "instruction": "Who greets?", "answer": "a voice"}
    for clip in (clips := read_manifest(manifest(tmp_path, spoken, task))):
        assert clip.text_alone
        assert clip.row(tmp_path / "elsewhere")["audio"] is None
        for use in (clip.check_audio, clip.read, clip.encoded, lambda clip=clip: list(clip.windows())):
            with pytest.raises(ManifestError, match=f"{clip.id} is text without sound.*leave it out"):
                use()
    (kept,) = synthesize(clips[:1], tmp_path, ["translate"])
    assert (kept["answer"], kept["text"], kept["audio"]) == ("salut", "hello", None)


def test_a_composition_misses_any_piece_of_its_audio(tmp_path: Path, encode: Any, tone: Any) -> None:
    encode(tmp_path / "a.wav", tone(1.0))
    pieces = [{"start": i, "end": i + 1, "id": name, "audio": f"{name}.wav"} for i, name in enumerate("ab")]
    row = {"id": "c", "audio": None, "duration": 2.0, "segments": pieces}
    (clip,) = read_manifest(manifest(tmp_path, row))
    with pytest.raises(ManifestError, match=r"line 1: c: its piece b: its audio b\.wav is neither"):
        clip.check_audio()
    with pytest.raises(ManifestError, match="has no file of its own"):
        clip.audio_file()


def test_a_manifest_that_may_not_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.jsonl").touch()

    def refused(path: Path, *mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ManifestError, match=r"secret\.jsonl cannot be read \(Permission denied\)"):
        read_manifest(tmp_path / "secret.jsonl")
