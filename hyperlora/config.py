"""What shapes a hypernetwork, and what its adapters need to know: one dataclass, stored as JSON."""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from inspect import formatannotation
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassFieldValidationError

from hyperlora.errors import UserError, shown
from hyperlora.files import write_atomic
from hyperlora.text import check_text

Head = Literal["L", "M", "S", "R"]
TaskInput = Literal["text", "one_hot", "learned"]
Offset = Literal["none", "factors", "delta"]
PromptStyle = Literal["input", "description_input", "definition_input", "either"]
RankEmbedding = Literal["plain", "through_mlp2"]

# Far above any real model, and low enough that a damaged file cannot ask for absurd memory.
MAX_MODULES, MAX_LAYERS, MAX_SIZE, MAX_RANK, MAX_TASKS = 64, 1024, 2**18, 1024, 10**6
MAX_TEXT = 100_000  # characters in any one string, such as the chat template
MAX_FILE = 2**20  # bytes of a config file
MAX_ZIP = 256 * 2**20  # bytes of an adapter's, as it comes and unpacked: a 7B model's of rank 16 takes 160 MiB


def _bad(name: str, wanted: str, value: object) -> UserError:
    return UserError(f"The config's {name} should be {wanted}, not {shown(value)}.")


def _checked(cls: type) -> type:
    """A strict dataclass, that says what is wrong with a field in a `UserError`."""
    cls = strict(cls)
    set_field = cls.__setattr__

    def set_or_say(self: object, name: str, value: object) -> None:
        try:
            set_field(self, name, value)
        except StrictDataclassFieldValidationError as error:
            limits = error.__cause__  # where the type is right
            wanted = str(limits) if isinstance(limits, ValueError) else formatannotation(cls.__annotations__[name])
            raise _bad(name, wanted, value) from None

    cls.__setattr__ = set_or_say
    return cls


def _number(smallest: float, largest: float, **default: Any) -> Any:
    """A field for a number in that range, or None where its type allows that."""

    def check(value: float | None) -> None:
        if value is not None and not smallest <= value <= largest:  # NaN fails the comparison
            raise ValueError(f"a number from {smallest:g} to {largest:,}")

    return validated_field(check, **default)


def _text(**default: Any) -> Any:
    def check(value: str | None) -> None:
        if value is not None and len(value) > MAX_TEXT:
            raise ValueError(f"a text of at most {MAX_TEXT:,} characters")
        check_text(value or "", "The config")

    return validated_field(check, **default)


@_checked
@dataclass
class HyperLoRAConfig:
    """A hypernetwork's shape (Fig. 8, 9) and the facts that its adapters depend on.

    Every field is checked whenever it is set; a bad one raises `UserError`.
    """

    head: Head
    """L gives A and B at once, M one of the two, S one rank of one of the two (§3.1); R, which only imported networks
    have, gives one rank of both."""
    target_modules: dict[str, tuple[int, int]]
    """Module name -> (d_in, d_out). The order numbers the modules in E[m] and is kept in the file."""
    num_layers: int = _number(1, MAX_LAYERS)
    d_emb: int = _number(1, MAX_TASKS)
    """Size of the task input; equal to `num_tasks` for one-hot inputs."""
    rank: int = _number(1, MAX_RANK, default=8)
    alpha: float | int = _number(1e-6, 1e6, default=16.0)
    use_rslora: bool = True
    task_input: TaskInput = "text"
    """`text`: a description's embedding; `one_hot`; `learned`: one trained vector of `d_emb` a task (§3.2)."""
    num_tasks: int | None = _number(1, MAX_TASKS, default=None)
    """Number of tasks for the inputs `one_hot` and `learned`; None for `text`."""
    task_names: list[str] | None = None
    """Their names, in the order of their numbers, where they are known."""
    offset: Offset = "none"
    """`factors`: added to A and B (Eq. 6); `delta`: a ΔW of its own (Eq. 8)."""
    z_score: bool = False
    """The network predicts z-scores of the weights (App. D)."""
    dropout: float | int = _number(0, 0.99, default=0.05)
    """Inside the MLP blocks (Fig. 8), in training only."""
    latent_size: int = _number(4, MAX_SIZE, default=128)
    """Width of the blocks' inputs (Fig. 8): half of it is the task's encoding, a quarter the module's and the layer's
    each; inside the blocks are four times as many values."""
    head_size: int = _number(1, MAX_SIZE, default=512)
    """Size of a head's input (Fig. 8)."""
    rank_embedding: RankEmbedding = "plain"
    """Head S: whether rank embeddings are added as they are (Fig. 9), or pass through mlp2 first, as in the public
    implementation."""
    module_order_assumed: bool = False
    """Whether the order of `target_modules` is a guess, because the file that was imported does not say it."""
    embedder: str = _text(default="sentence-transformers/all-MiniLM-L6-v2")
    embedder_revision: str | None = _text(default=None)
    base_model: str | None = _text(default=None)
    base_revision: str | None = _text(default=None)
    chat_template: str | None = _text(default=None)
    """The template that the adapters were trained with; None: the base model's own."""
    prompt_style: PromptStyle = "input"
    """What the prompts in training held: the input alone, the description on the line before it, either of the two, or,
    as in the public implementation, a definition of the task, a blank line and the input."""
    describe: bool = True
    """Prompt style `either`: whether chats hold the description where they do not say, as measured after training."""
    trained_tokens: int | None = _number(0, 2**62, default=None)
    """The tokens of the rows that it was trained on, of all its runs by `training.sft` together."""
    notice_threshold: float | int | None = _number(-1, 1, default=None)
    """Cosine to the nearest training description under which a notice is shown; None: never."""
    norm_range: tuple[float | int, float | int] | None = None
    """Between these lies ‖ΔW‖, over all modules and layers, of 98 in 100 training descriptions' adapters; None: it has
    not been measured."""

    def __post_init__(self) -> None:
        if self.rank_embedding != "plain" and self.head != "S":
            raise _bad("rank_embedding", f"plain for head {self.head}", self.rank_embedding)
        if not 1 <= len(self.target_modules) <= MAX_MODULES:
            raise _bad("target_modules", f"1 to {MAX_MODULES} names with their (d_in, d_out)", self.target_modules)
        for name, sizes in self.target_modules.items():
            if not 1 <= len(name) <= 100 or "." in name:  # PyTorch does not take a dot in a parameter's name
                raise _bad("target_modules", "names without a dot, such as q_proj", name)
            if not all(1 <= size <= MAX_SIZE for size in sizes):
                raise _bad(f"target_modules: {name}", f"d_in and d_out from 1 to {MAX_SIZE:,}", sizes)
        if self.norm_range is not None and not 0 <= self.norm_range[0] <= self.norm_range[1] < math.inf:
            raise _bad("norm_range", "two numbers, the smaller one first", self.norm_range)
        names = self.task_names
        if self.task_input == "text":
            for field in ("num_tasks", "task_names"):
                if getattr(self, field) is not None:
                    raise _bad(field, "null when the task input is text", getattr(self, field))
        elif self.num_tasks is None:
            raise _bad("num_tasks", f"a number when the task input is {self.task_input}", None)
        elif self.task_input == "one_hot" and self.d_emb != self.num_tasks:
            raise _bad("d_emb", f"num_tasks ({self.num_tasks}) when the task input is one_hot", self.d_emb)
        elif names is not None and (len(set(names)) != self.num_tasks or len(names) != self.num_tasks):
            raise _bad("task_names", f"num_tasks ({self.num_tasks}) different names", names)

    @property
    def scale(self) -> float:
        """What ΔW = scale · B A is scaled by: alpha / √rank with rsLoRA, alpha / rank without."""
        return lora_scale(self.alpha, self.rank, self.use_rslora)

    @property
    def chat_style(self) -> PromptStyle:
        """How a chat that does not say holds the description: as in training or, for `either`, as `describe` says."""
        if self.prompt_style != "either":
            return self.prompt_style
        return "description_input" if self.describe else "input"

    @property
    def head_start(self) -> Literal["zero", "peft"]:
        """How the heads start.

        `zero`: where an offset (Eq. 6) or the mean of the z-scores (App. D) is added to the output, the heads start at
        zero, so that step 0 is that offset exactly. `peft`: otherwise A = B = 0 would never train, as each is the
        other's gradient: a learned A/B basis, shared by all layers (for head L, its bias in another shape), starts as
        PEFT does, A Kaiming-uniform and B zero. The paper's parameter counts are those of `zero`: they hold no basis.
        """
        return "zero" if self.offset == "factors" or self.z_score else "peft"

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON types; `target_modules` becomes a list of [name, d_in, d_out], which keeps its order."""
        return asdict(self) | {"target_modules": [[name, *sizes] for name, sizes in self.target_modules.items()]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HyperLoRAConfig":
        """The reverse of `to_dict`. Raises `UserError` for a key that is unknown or missing, and for a bad value."""
        if not isinstance(values, dict):
            raise UserError("The config should be a JSON object; get the file again from where it came.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(map(str, set(values) - known)):
            raise UserError(f"The config has the unknown key {unknown[0]!r}; remove it or update HyperLoRA.")
        if missing := [name for name in ("head", "target_modules", "num_layers", "d_emb") if name not in values]:
            raise UserError(
                f"The config lacks the key {missing[0]!r}; add it, or get the file again from where it came."
            )
        modules = values["target_modules"]
        if not isinstance(modules, list) or not all(isinstance(row, list) and len(row) == 3 for row in modules):
            raise _bad("target_modules", "a list of [name, d_in, d_out]", modules)
        if not all(isinstance(row[0], str) for row in modules) or len({row[0] for row in modules}) < len(modules):
            raise _bad("target_modules", "a list of [name, d_in, d_out] with a different name in each", modules)
        values = values | {"target_modules": {name: (d_in, d_out) for name, d_in, d_out in modules}}
        if isinstance(values.get("norm_range"), list):  # JSON has no tuples
            values["norm_range"] = tuple(values["norm_range"])
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the config as JSON to `path`, whole or not at all."""
        write_atomic(Path(path), (json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "HyperLoRAConfig":
        """Read what `save` wrote. Raises `UserError` where the file is missing, damaged, too large or says nonsense."""
        return cls.from_dict(read_json(path))


def lora_scale(alpha: float, rank: int, use_rslora: bool) -> float:
    """LoRA's scale: alpha / √rank with rsLoRA, alpha / rank without."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def read_json(path: str | Path, max_bytes: int = MAX_FILE) -> Any:
    """The value in a JSON file of at most `max_bytes`; `UserError` where it is too large or cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path, or get the folder again from where it came.")
    if path.stat().st_size > max_bytes:
        raise UserError(f"{path} is larger than {max_bytes:,} bytes; it is not the kind of file it should be.")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # an escape of half a character, perhaps beside its other half
            check_text(json.dumps(value, ensure_ascii=False), str(path))
        return value
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); check that it may be read.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (not valid JSON); get the file again from where it came.") from error
