"""An adapter as a file to take away: a zip that plain PEFT reads, with a model card."""

import re
import tempfile
import zipfile
from pathlib import Path

from hyperlora.files import HUB_ID, write_atomic
from hyperlora.lora import Adapter

CARD = """\
---
library_name: peft
{header}tags:
- lora
- hyperlora
---
# A LoRA adapter from a description

{description}

Made by HyperLoRA in one forward pass of a hypernetwork{hyperlora}, with no training on examples. Rank {rank}, alpha
{alpha:g}{rslora}, for {modules} of the base model {base}.

## Use it with plain PEFT

Put the three files of this zip in a folder, here `adapter`:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base_path!r}), "adapter")
```
"""


def model_card(adapter: Adapter) -> str:
    """README.md of an exported adapter: its description, its base model, and three lines of Python that use it."""
    base = adapter.base_model or "it was made for"
    on_hub = adapter.base_model is not None and "/" in adapter.base_model and HUB_ID.fullmatch(adapter.base_model)
    lines = (adapter.description or "It has no description.").splitlines()
    return CARD.format(
        header=f"base_model: {adapter.base_model}\n" if on_hub else "",
        description="\n".join(f"> {line}" for line in lines),
        hyperlora=f" ({adapter.hyperlora})" if adapter.hyperlora else "",
        rank=adapter.rank,
        alpha=adapter.alpha,
        rslora=" with rsLoRA's scale" if adapter.use_rslora else "",
        modules=" and ".join(adapter.weights),
        base=base,
        base_path=adapter.base_model or "path/to/the/base/model",
    )


def export_zip(adapter: Adapter, path: str | Path) -> Path:
    """Write the adapter's PEFT folder and its card as one zip; returns the zip's path.

    `path` is the zip's own name, or a folder, in which it is named after the description.
    """
    path = Path(path)
    if path.suffix != ".zip":
        path = path / f"{slug(adapter.description)}.zip"
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder)
        (Path(folder) / "README.md").write_text(model_card(adapter), encoding="utf-8")
        archive = Path(folder) / "archive"
        with zipfile.ZipFile(archive, "w") as file:
            for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
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
