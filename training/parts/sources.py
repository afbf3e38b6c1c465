"""What is measured: a base model, and the checkpoints and plain LoRAs for it."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from hyperlora.adapted import AdaptedModel
from hyperlora.base import Precision, load_base, precision
from hyperlora.embedder import LAST_TOKEN, load_embedder
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.prompt import use_trained_template
from training.parts.adapters import TARGET_MODULES, load_adapters
from training.parts.digest import base_digest
from training.parts.options import option


@dataclass(kw_only=True)
class Sources:
    """What is measured."""

    base: str = option(help="the base model: folder or Hub id")
    hyperlora: list[str] | None = option(None, "checkpoints; the first is also measured with a prompt")
    adapters: str | None = option(None, "folder of plain LoRAs as training.lora writes it")
    base_dtype: Precision = option("float32", "how the base is held")
    device: str = option("cpu", "cpu, cuda, ...")

    def load(self) -> tuple[AdaptedModel, object, dict[str, HyperLoRA], dict[str, Adapter]]:
        """The base with its tokenizer, label -> checkpoint, and name -> plain LoRA.

        The tokenizer has the chat template that the checkpoints were trained with; all rows are measured under it.
        """
        hyperloras: dict[str, HyperLoRA] = {}
        for path in self.hyperlora or []:
            checkpoint = HyperLoRA.from_pretrained(path)
            label = f"HyperLoRA {checkpoint.config.head}"
            hyperloras[label if label not in hyperloras else f"{label} ({path})"] = checkpoint
        adapters = load_adapters(self.adapters) if self.adapters else {}
        targets = [hyperlora.config.target_modules for hyperlora in hyperloras.values()]
        targets += [list(adapter.weights) for adapter in adapters.values()]
        model, tokenizer = load_base(self.base, device=self.device, **precision(self.base_dtype))
        use_trained_template(tokenizer, *(hyperlora.config for hyperlora in hyperloras.values()))
        for hyperlora in hyperloras.values():
            if hyperlora.config.task_input == "text" and hyperlora.config.embedder == LAST_TOKEN:
                hyperlora.embedder = load_embedder(LAST_TOKEN, base=(model, tokenizer))
        return AdaptedModel(model, targets[0] if targets else TARGET_MODULES), tokenizer, hyperloras, adapters

    def digest(self, model: PreTrainedModel) -> str:
        """Of the base as it is held, for `Answers`."""
        return f"{base_digest(model)} {self.base_dtype}"
