"""Two minutes of broken files for each reader of what strangers bring: `make fuzz`, or python -m tests.fuzz zip 10.

A reader may answer with a `UserError` of one short line, or take the file; anything else is a finding, and so is memory
far beyond the file's: the file is kept in ./fuzz-found, with its name printed, and the command ends with 1.
"""

import json
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load, save
from transformers import LlamaConfig, LlamaForCausalLM

from hyperlora.config import HyperLoRAConfig
from hyperlora.conversion import converted
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.interop.text_to_lora import import_checkpoint
from hyperlora.lora import Adapter
from hyperlora.recipe import Recipe
from hyperlora.upload import unpack
from tests.gguf_files import SIZES, write_gguf

SECONDS = 120
MAX_GROWTH = 2 * 2**30  # bytes of address space that a reader may ask for beyond what there is at the start
FOUND = Path("fuzz-found")
WORDS = [
    b"\0",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"..",
    b"/",
    b"{",
    b"]",
    b'"',
    b"NaN",
    b"1e999",
    b"-1",
    b"null",
    b"[[[",
]


# ---- how a file is broken ----


def broken(random: Random, data: bytes) -> bytes:
    """The bytes with one to four changes: bits, cuts, repeats, words that readers trip over, long numbers."""
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        head = random.random() < 0.7  # most of what is read with care is in front
        at = random.randrange(min(len(data), 2_000) if head else len(data)) if data else 0
        size = random.choice([1, 1, 2, 8, 64, 4096])
        change = random.randrange(7)
        if change == 0 and data:
            data[at] ^= 1 << random.randrange(8)
        elif change == 1:
            data[at : at + size] = random.randbytes(size)
        elif change == 2:
            del data[at : at + size]
        elif change == 3:
            data[at:at] = data[at : at + size]
        elif change == 4:
            data[at:at] = random.choice(WORDS)
        elif change == 5:
            data[at : at + 8] = random.choice([0, 1, 2**31, 2**63 - 1, 2**64 - 1]).to_bytes(8, "little")
        else:
            del data[at:]
    return bytes(data)


def odd_value(random: Random, value: object) -> object:
    """A JSON value with one place in it that holds something else."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        if random.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: odd_value(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        return [*value[:at], odd_value(random, value[at]), *value[at + 1 :]]
    return random.choice(
        [None, True, -1, 0, 1, 1e308, 2**70, "", "x" * 5_000, "\ud800", "../..", [], {}, [[]], {"a": {}}, "text", 0.5]
    )


def broken_json(random: Random, data: bytes) -> bytes:
    if random.random() < 0.3:
        return broken(random, data)
    return json.dumps(odd_value(random, json.loads(data))).encode()


def broken_weights(random: Random, data: bytes) -> bytes:
    """A safetensors file, broken as bytes or in the header's JSON, or with tensors of other shapes and kinds."""
    kind = random.random()
    if kind < 0.3:
        return broken(random, data)
    if kind < 0.6:
        size = int.from_bytes(data[:8], "little")
        header = broken_json(random, data[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    tensors = load(data)
    name = random.choice(list(tensors))
    tensor = tensors.pop(name)
    change = random.randrange(5)
    if change == 0:
        tensors[random.choice(["x", name + ".lora_A", name.replace("0", "9" * 30), "../" + name])] = tensor
    elif change == 1:
        tensors[name] = tensor[..., :-1].contiguous()
    elif change == 2:
        tensors[name] = tensor.to(random.choice([torch.int8, torch.float64, torch.bfloat16, torch.bool]))
    elif change == 3:
        tensors[name] = torch.full_like(
            tensor, random.choice([float("nan"), float("inf"), torch.finfo(tensor.dtype).max])
        )
    return save(tensors)


# ---- what is broken, and who reads it ----


def tiny_adapter() -> Adapter:
    weights = {name: (torch.randn(2, 4, 16), torch.randn(2, 8, 4)) for name in ("q_proj", "v_proj")}
    return Adapter(weights, alpha=8.0, use_rslora=True, description="Say it.")


def read_folder(random: Random, folder: Path, whole: dict[str, bytes], how: dict[str, Callable]) -> None:
    """Write a folder with one or two of its files broken, or missing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = random.sample(sorted(how), min(len(how), random.randint(1, 2)))
    for name, data in whole.items():
        if name in names and random.random() < 0.05:
            continue
        (folder / name).write_bytes(how[name](random, data) if name in names else data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


PEFT_FILES = {"adapter_config.json": broken_json, "adapter_model.safetensors": broken_weights}


def make_peft(work: Path) -> Callable[[Random], None]:
    tiny_adapter().save_pretrained(work / "whole")
    whole = contents(work / "whole")

    def once(random: Random) -> None:
        read_folder(random, work / "case", whole, PEFT_FILES)
        Adapter.from_pretrained(work / "case").norms()

    return once


def make_zip(work: Path) -> Callable[[Random], None]:
    tiny_adapter().save_pretrained(work / "whole")
    whole = contents(work / "whole")

    def once(random: Random) -> None:
        case = work / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        with zipfile.ZipFile(case / "a.zip", "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as made:
            inside = random.choice(["", "", "a/", "../", "a\\", "/"])
            for name, data in whole.items():
                data = PEFT_FILES[name](random, data) if random.random() < 0.3 else data
                made.writestr(inside + name, data)
            if random.random() < 0.3:
                name = random.choice(["x.bin", "README.md", inside + "adapter_config.json", "y" * 300, "a\0b", "l.pt"])
                made.writestr(name, b"0" * random.choice([0, 10, 10**6]))
        if random.random() < 0.7:
            (case / "a.zip").write_bytes(broken_zip(random, (case / "a.zip").read_bytes()))
        (case / "out").mkdir()
        unpack(case / "a.zip", case / "out")
        Adapter.from_pretrained(case / "out").norms()

    return once


def broken_zip(random: Random, data: bytes) -> bytes:
    """As `broken`, as often in the list at the end as in front."""
    if random.random() < 0.5:
        return broken(random, data)
    return broken(random, data[::-1])[::-1]


def make_checkpoint(work: Path) -> Callable[[Random], None]:
    targets = {"q_proj": (16, 16), "v_proj": (16, 8)}
    config = HyperLoRAConfig("M", targets, 2, 8, rank=2, latent_size=8, head_size=8, offset="factors")
    hyperlora = HyperLoRA(config)
    hyperlora.set_descriptions(["One.", "Two."], torch.randn(2, 8).half())
    hyperlora.save_pretrained(work / "whole")
    whole = contents(work / "whole")
    how = {name: broken_weights if name.endswith(".safetensors") else broken_json for name in whole}

    def once(random: Random) -> None:
        read_folder(random, work / "case", whole, how)
        HyperLoRA.from_pretrained(work / "case")

    return once


def make_public(work: Path) -> Callable[[Random], None]:
    """A checkpoint in the public format; random words take the place of its settings."""
    whole = contents(Path(__file__).parent / "interop" / "M-sft-offset")

    def pickle(random: Random, data: bytes) -> bytes:
        return broken_zip(random, data)

    how = {
        name: broken_json if name.endswith(".json") else pickle if name.endswith(".pt") else broken for name in whole
    }

    def once(random: Random) -> None:
        read_folder(random, work / "case", whole, how)
        import_checkpoint(work / "case")

    return once


def make_gguf(work: Path) -> Callable[[Random], None]:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    data = write_gguf(work / "whole.gguf", model, quantization="Q8_0").read_bytes()

    def once(random: Random) -> None:
        (work / "case").mkdir(exist_ok=True)
        (work / "case" / "a.gguf").write_bytes(broken(random, data))
        shutil.rmtree(converted(work / "case" / "a.gguf"))

    return once


def make_link(work: Path) -> Callable[[Random], None]:
    checkpoint = "0123456789ab"
    blend = ((1, Recipe("One thing.")), (-0.5, Recipe("Another.", strength=2)))
    links = [Recipe("Say “it”."), Recipe(blend=blend, space="factors"), Recipe(upload="a" * 64)]

    def once(random: Random) -> None:
        recipe = random.choice(links)
        (work / "case").mkdir(exist_ok=True)
        if random.random() < 0.5:
            text = broken_json(random, recipe.to_json().encode()).decode("utf-8", "surrogateescape")
            (work / "case" / "text").write_text(text, errors="surrogatepass")
            Recipe.from_json(text)
        else:
            text = broken(random, recipe.link(checkpoint).encode()).decode("utf-8", "surrogateescape")
            (work / "case" / "text").write_text(text, errors="surrogatepass")
            Recipe.from_link(text, checkpoint)

    return once


READERS = {
    "zip": make_zip,
    "peft": make_peft,
    "checkpoint": make_checkpoint,
    "public": make_public,
    "gguf": make_gguf,
    "link": make_link,
}


def fuzz(name: str, seconds: float, seed: int = 0, most: int | None = None) -> tuple[int, int]:
    """How many files were read and how many of them taken, in so many seconds. Raises what is a finding."""
    random, read, taken = Random(f"{name} {seed}"), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        once = READERS[name](work)
        until = time.monotonic() + seconds
        while time.monotonic() < until and read != most:
            read += 1
            try:
                once(random)
                taken += 1
            except UserError as error:
                if "\n" in str(error) or len(str(error)) > 2_000:
                    _keep(name, read, work)
                    raise AssertionError(f"this is no short line: {error}") from error
            except BaseException:
                _keep(name, read, work)
                raise
    return read, taken


def _keep(name: str, number: int, work: Path) -> None:
    kept = FOUND / f"{name}-{number}"
    if (work / "case").exists():
        shutil.copytree(work / "case", kept, dirs_exist_ok=True)
    print(f"{name}: file {number} is in {kept}", file=sys.stderr)


def main() -> int:
    names = [sys.argv[1]] if len(sys.argv) > 1 else list(READERS)
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MAX_GROWTH, here + MAX_GROWTH))
    failed = False
    for name in names:
        try:
            read, taken = fuzz(name, seconds, seed=int(time.time()))
            print(f"{name}: {read:,} broken files, {taken:,} of them taken as they were, no finding", flush=True)
        except Exception as error:
            failed = True
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            import traceback

            traceback.print_exc()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
