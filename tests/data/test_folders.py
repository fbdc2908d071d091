"""Folders of LibriSpeech and Common Voice become rows; what is missing is said with file and line."""

from pathlib import Path
from typing import Any

import pytest

from fastslm.data.corpora import common_voice_rows, librispeech_rows, seconds_of
from fastslm.errors import AudioError, ManifestError


@pytest.fixture
def librispeech(tmp_path: Path, encode: Any, tone: Any) -> Path:
    part = tmp_path / "LibriSpeech" / "dev-clean"
    chapter = part / "84" / "121"
    chapter.mkdir(parents=True)
    for index, seconds in enumerate((1.25, 2.5)):
        encode(chapter / f"84-121-000{index}.flac", tone(seconds), codec="flac")
    (chapter / "84-121.trans.txt").write_text("84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT IN LESS THAN FIVE\n\n")
    (part.parent / "SPEAKERS.TXT").write_text("; a comment\n84   | F | dev-clean | 8.02 | Christie Nowak\n")
    return part


@pytest.fixture
def common_voice(tmp_path: Path, encode: Any, tone: Any) -> Path:
    folder = tmp_path / "cv" / "sv-SE"
    (folder / "clips").mkdir(parents=True)
    encode(folder / "clips" / "cv_1.mp3", tone(1.5, 44_100), 44_100, "libmp3lame")
    encode(folder / "clips" / "cv_2.mp3", tone(2.0, 44_100), 44_100, "libmp3lame")
    (folder / "train.tsv").write_text(
        "client_id\tpath\tsentence\tage\tgender\taccents\tlocale\n"
        'ann\tcv_1.mp3\tHan sade "hej.\tthirties\tfemale\tskånska\tsv-SE\n'
        "bo\tcv_2\tJa, visst.\t\t\t\tsv-SE\n"
    )
    return folder


def test_librispeech_is_found_at_any_depth_with_texts_durations_and_speakers(librispeech: Path) -> None:
    for folder in (librispeech, librispeech.parent, librispeech / "84"):
        first, second = librispeech_rows(folder, librispeech.parent)
        assert first == {
            "id": "84-121-0000",
            "audio": "dev-clean/84/121/84-121-0000.flac",
            "duration": 1.25,
            "text": "go do you hear",
            "speaker": "84",
            "language": "en",
            "label_kind": "human",
            "gender": "female",
        }
        assert (second["id"], second["duration"]) == ("84-121-0001", 2.5)


def test_common_voice_rows_keep_sentence_speaker_language_and_what_is_known_of_them(common_voice: Path) -> None:
    first, second = common_voice_rows(common_voice, common_voice, "train")
    assert first["audio"] == "clips/cv_1.mp3"
    assert first["text"] == 'Han sade "hej.', "a quotation mark is text, not syntax"
    assert (first["speaker"], first["language"], first["age"]) == ("ann", "sv", "thirties")
    assert first["accent"] == "skånska"
    assert second["id"] == "cv_2", "old releases leave the suffix out"
    assert "gender" not in second
    # An mp3's header only estimates, so it is decoded; its frames of 26 ms round up.
    assert second["duration"] == pytest.approx(2.0, abs=0.06)


def test_a_fault_names_file_and_line(librispeech: Path, common_voice: Path) -> None:
    (librispeech / "84" / "121" / "84-121-0001.flac").unlink()
    with pytest.raises(ManifestError, match=r"84-121\.trans\.txt, line 2: the audio of 84-121-0001 is not beside it"):
        list(librispeech_rows(librispeech, librispeech))
    (common_voice / "clips" / "cv_1.mp3").write_bytes(b"no sound" * 30)
    with pytest.raises(AudioError, match=r"train\.tsv, line 2: .*cv_1\.mp3"):
        list(common_voice_rows(common_voice, common_voice, "train"))


def test_told_of_faults_the_others_go_on(common_voice: Path) -> None:
    (common_voice / "clips" / "cv_1.mp3").unlink()
    told: list[str] = []
    rows = list(common_voice_rows(common_voice, common_voice, "train", told.append))
    assert [row["id"] for row in rows] == ["cv_2"]
    assert len(told) == 1
    assert "train.tsv, line 2" in told[0]


def test_a_folder_of_another_kind_is_said_so(librispeech: Path, common_voice: Path) -> None:
    with pytest.raises(ManifestError, match=r"no file that ends in \.trans\.txt"):
        list(librispeech_rows(common_voice, common_voice))
    with pytest.raises(ManifestError, match=r"validated\.tsv does not exist.*\(here: train\)"):
        list(common_voice_rows(common_voice, common_voice))
    (common_voice / "odd.tsv").write_text("client_id\tpath\n")
    with pytest.raises(ManifestError, match=r"odd\.tsv, line 1: there is no column sentence"):
        list(common_voice_rows(common_voice, common_voice, "odd"))


def test_a_duration_is_measured_where_the_file_may_lie(tmp_path: Path, encode: Any, tone: Any) -> None:
    mp3 = encode(tmp_path / "a.mp3", tone(3.0), codec="libmp3lame")
    assert seconds_of(mp3) == pytest.approx(3.0, abs=0.08)
    assert seconds_of(mp3.read_bytes()) == seconds_of(mp3)
    assert seconds_of(encode(tmp_path / "a.flac", tone(3.0), codec="flac")) == 3.0
