"""An import writes a manifest with all its audio, or nothing."""

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastslm.data import shards
from fastslm.data.corpora import Columns, import_corpus
from fastslm.data.manifest import read_manifest
from fastslm.errors import AudioError, FastSLMError, ManifestError, OptionError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def recordings(tmp_path: Path, encode: Any, tone: Any) -> list[bytes]:
    return [
        encode(tmp_path / "x.flac", tone(1.0 + i, frequency=220.0 * (i + 1)), codec="flac").read_bytes()
        for i in range(3)
    ]


def rows_of(recordings: list[bytes]) -> list[dict[str, Any]]:
    return [
        {
            "audio": {"bytes": content, "path": f"{i}.flac"},
            "sentence": f"Satz {i}.",
            "client_id": f"s{i}",
            "en": f"S {i}",
        }
        for i, content in enumerate(recordings)
    ]


def saved(folder: Path, rows: list[dict[str, Any]], kind: str = "parquet") -> Path:
    """A data set on disk in two files."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate((rows[:2], rows[2:])):
        table = pyarrow.Table.from_pylist(part)
        file = folder / f"data-0000{number}.{kind}"
        if kind == "parquet":
            parquet.write_table(table, file)
        else:
            with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
    return folder


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_data_set_becomes_shards_that_hold_its_very_bytes(
    tmp_path: Path, recordings: list[bytes], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 30_000)
    source, out = saved(tmp_path / "set", rows_of(recordings), kind), tmp_path / "out" / "de.jsonl"
    out.parent.mkdir()
    columns = Columns(translation="en", target_language="en", language="de")
    assert import_corpus(source, out, "hf", columns=columns) == (3, 6.0)
    clips = read_manifest(out)
    assert [clip.id for clip in clips] == ["data-00000-000000", "data-00000-000001", "data-00001-000000"]
    assert [clip.text for clip in clips] == ["Satz 0.", "Satz 1.", "Satz 2."]
    assert [clip.encoded() for clip in clips] == recordings
    assert (clips[1].language, clips[1].speaker, clips[1].translation, clips[1].target_language) == (
        "de",
        "s1",
        "S 1",
        "en",
    )
    names = sorted(path.name for path in out.parent.iterdir())
    assert names[-1] == "de.jsonl"
    assert names[:-1] == [f"de-{i:03d}.tar" for i in range(len(names) - 1)]
    assert len(names) > 2, "a full shard is followed by another"


def test_shards_are_tar_files_that_any_tool_opens(tmp_path: Path, recordings: list[bytes]) -> None:
    import_corpus(saved(tmp_path / "set", rows_of(recordings)), tmp_path / "de.jsonl", "hf")
    with tarfile.open(tmp_path / "de-000.tar") as tar:
        members = tar.getmembers()
        assert members[0].name == "data-00000-000000.flac"
        assert [tar.extractfile(member).read() for member in members] == recordings  # type: ignore[union-attr]


def test_a_name_too_long_for_a_plain_tar_header_moves_no_offset(tmp_path: Path, recordings: list[bytes]) -> None:
    rows = [{**row, "id": "n" * 150 + str(i)} for i, row in enumerate(rows_of(recordings))]
    import_corpus(saved(tmp_path / "set", rows), tmp_path / "de.jsonl", "hf")
    assert [clip.encoded() for clip in read_manifest(tmp_path / "de.jsonl")] == recordings


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"audio": {"bytes": b"no sound" * 20, "path": "2.flac"}}, AudioError, r"data-00001\.parquet, row 1: "),
        ({"audio": {"bytes": None, "path": "gone.flac"}}, ManifestError, r"row 1: its audio is neither in the row"),
        ({"sentence": " "}, ManifestError, r"row 1: its text is empty"),
        ({"id": "data-00000-000000"}, ManifestError, r"the id data-00000-000000 occurs twice"),
    ],
)
def test_the_first_fault_leaves_nothing_behind_unless_faults_are_to_be_skipped(
    tmp_path: Path, recordings: list[bytes], change: dict[str, Any], error: type[Exception], said: str
) -> None:
    rows = rows_of(recordings)
    source, out = saved(tmp_path / "set", [*rows[:2], {**rows[2], **change}]), tmp_path / "out" / "de.jsonl"
    out.parent.mkdir()
    with pytest.raises(error, match=said):
        import_corpus(source, out, "hf")
    assert list(out.parent.iterdir()) == []
    told: list[str] = []
    assert import_corpus(source, out, "hf", on_fault=told.append) == (2, 3.0)
    assert len(told) == 1
    assert len(read_manifest(out)) == 2


def test_what_exists_is_never_written_over(tmp_path: Path, recordings: list[bytes]) -> None:
    source, out = saved(tmp_path / "set", rows_of(recordings)), tmp_path / "de.jsonl"
    out.write_text("mine")
    with pytest.raises(OptionError, match="exists already"):
        import_corpus(source, out, "hf")
    assert out.read_text() == "mine"
    with pytest.raises(OptionError, match="does not exist; make it first"):
        import_corpus(source, tmp_path / "none" / "de.jsonl", "hf")


def test_a_disk_that_fills_up_leaves_nothing_behind(
    tmp_path: Path, recordings: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = saved(tmp_path / "set", rows_of(recordings)), tmp_path / "out" / "de.jsonl"
    out.parent.mkdir()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.ShardWriter, "move_to", full)
    with pytest.raises(FastSLMError, match="No space left on device"):
        import_corpus(source, out, "hf")
    assert list(out.parent.iterdir()) == []


def test_a_folder_import_names_the_audio_from_the_manifest(tmp_path: Path, encode: Any, tone: Any) -> None:
    chapter = tmp_path / "part" / "1" / "2"
    chapter.mkdir(parents=True)
    wave = tone(1.0)
    encode(chapter / "1-2-0.wav", wave)
    (chapter / "1-2.trans.txt").write_text("1-2-0 HELLO\n")
    (tmp_path / "lists").mkdir()
    out = tmp_path / "lists" / "part.jsonl"
    assert import_corpus(tmp_path / "part", out, "librispeech") == (1, 1.0)
    assert json.loads(out.read_text())["audio"] == "../part/1/2/1-2-0.wav"
    np.testing.assert_allclose(read_manifest(out)[0].read(), wave, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "error", "said"),
    [
        ("librispech", {}, OptionError, "did you mean 'librispeech'"),
        ("librispeech", {"split": "dev"}, OptionError, "A split belongs to commonvoice"),
        ("commonvoice", {"columns": Columns(text="t")}, OptionError, "Columns and languages belong to hf"),
        ("hf", {}, ManifestError, r"no \.parquet and no \.arrow file"),
        ("librispeech", {}, ManifestError, r"no file that ends in \.trans\.txt"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, kind: str, options: Any, error: Any, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=said):
        import_corpus(tmp_path / "empty", tmp_path / "out.jsonl", kind, **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_column_is_said_with_those_that_are_there(tmp_path: Path, recordings: list[bytes]) -> None:
    source = saved(tmp_path / "set", rows_of(recordings))
    with pytest.raises(ManifestError, match="no column words, only audio, sentence, client_id, en: name the one"):
        import_corpus(source, tmp_path / "a.jsonl", "hf", columns=Columns(text="words"))
    with pytest.raises(OptionError, match="belong together"):
        Columns(translation="en")


def test_a_broken_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nonsense")
    with pytest.raises(ManifestError, match=r"a\.parquet cannot be read"):
        import_corpus(tmp_path, tmp_path / "a.jsonl", "hf")


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match="pip install pyarrow"):
        import_corpus(tmp_path, tmp_path / "a.jsonl", "hf")
