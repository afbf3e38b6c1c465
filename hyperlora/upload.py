"""An adapter in somebody's zip: what is looked at before anything in it is read."""

import io
import re
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from hyperlora.config import MAX_FILE, MAX_ZIP
from hyperlora.errors import UserError, shown
from hyperlora.files import writing
from hyperlora.lora import CONFIG_FILE, PICKLES, WEIGHTS_FILE

MAX_LISTING = 256 * 2**10  # bytes that are read to list what is in it
MAX_HEADER = 4 * 2**20  # bytes of the weights' list of tensors
SUFFIXES = {PurePosixPath(name).suffix for name in PICKLES}
WANTED = f"zip {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT's save_pretrained writes them, and nothing else"


class _Bounded(io.FileIO):
    """A file that is not read beyond `left` more bytes: a zip can list millions of members."""

    left = MAX_LISTING

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise UserError(f"The zip holds too many files: {WANTED}.")
        return data


def unpack(archive: Path, folder: Path) -> None:
    """Write an adapter's config and weights from a zip into `folder`. They may be in a folder of the zip, and whatever
    else is beside them is not read.

    Raises `UserError` for what is no zip, a damaged or too large one, one without or with several adapters, and for
    members that are pickles, encrypted, links, there twice, or lead out of the zip.
    """
    if archive.stat().st_size > MAX_ZIP:
        raise UserError(f"The zip is larger than {MAX_ZIP // 2**20} MiB, which is the limit: save a lower rank.")
    with _Bounded(archive) as file:
        try:
            with zipfile.ZipFile(file) as opened:
                file.left = 2 * MAX_ZIP
                for name, info in _find(opened.infolist()).items():
                    # It gives as many bytes as it said at most, however many are in it.
                    with opened.open(info) as member, writing(folder, "make room"), open(folder / name, "wb") as out:
                        shutil.copyfileobj(member, out, 2**20)
                    if (folder / name).stat().st_size != info.file_size:
                        raise zipfile.BadZipFile
        except UserError:
            raise
        except Exception as error:  # whatever a zip can make of its reader
            raise UserError(f"The file is no zip, or a damaged one: {WANTED}.") from error
    with open(folder / WEIGHTS_FILE, "rb") as weights:
        if int.from_bytes(weights.read(8), "little") > MAX_HEADER:
            raise UserError(f"{WEIGHTS_FILE} is damaged: it is not a whole safetensors file of an adapter.")


def _find(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The two files' members, by the files' names."""
    names = [member.orig_filename for member in members]  # `filename` ends where a NUL is
    for name, member in zip(names, members, strict=True):
        parts = re.split(r"[/\\]", name)
        if name[:1] in ("/", "\\") or ".." in parts or ":" in parts[0] or "\0" in name:
            raise UserError(f"The zip holds {shown(name)}, a path that leads out of it: {WANTED}.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"The zip holds {shown(name)}, a link to another file: {WANTED}.")
        if member.flag_bits & 0x41:
            raise UserError(f"The zip's {shown(name)} is encrypted: zip it without a password.")
        if PurePosixPath(name).suffix.lower() in SUFFIXES:
            raise UserError(
                f"The zip holds {shown(name)}, which could run code when read: save the adapter as safetensors, and "
                f"{WANTED}."
            )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The zip holds {shown(twice)} twice: {WANTED}.")
    configs = [name for name in names if re.split(r"[/\\]", name)[-1] == CONFIG_FILE]
    if len(configs) != 1:
        raise UserError(f"The zip holds {len(configs) or 'no'} {CONFIG_FILE}: {WANTED}.")
    inside, found = configs[0].removesuffix(CONFIG_FILE), {}
    for file, most in ((CONFIG_FILE, MAX_FILE), (WEIGHTS_FILE, MAX_ZIP)):
        if inside + file not in names:
            raise UserError(f"The zip holds no {shown(inside + file)}: {WANTED}.")
        found[file] = members[names.index(inside + file)]
        if found[file].file_size > most:
            raise UserError(f"The zip's {file} has more than {most // 2**20} MiB, which is the limit.")
        if found[file].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"The zip's {file} is compressed in a rare way: zip it with deflate, as most tools do.")
    return found
