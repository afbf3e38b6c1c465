"""What shapes a hypernetwork, and what its adapters need to know: one dataclass, stored as JSON."""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from hyperlora.errors import UserError
from hyperlora.files import write_atomic
from hyperlora.text import check_text

Head = Literal["L", "M", "S", "R"]
TaskInput = Literal["text", "one_hot", "learned"]
Offset = Literal["none", "factors", "delta"]
PromptStyle = Literal["input", "description_input", "definition_input"]
RankEmbedding = Literal["plain", "through_mlp2"]

# Far above any real model, and low enough that a damaged file cannot ask for absurd memory.
MAX_MODULES, MAX_LAYERS, MAX_SIZE, MAX_RANK, MAX_TASKS = 64, 1024, 2**18, 1024, 10**6
MAX_TEXT = 100_000  # characters in any one string, such as the chat template
MAX_FILE = 2**20  # bytes of a config file


@dataclass
class HyperLoRAConfig:
    """A hypernetwork's shape (Fig. 8, 9) and the facts that its adapters depend on.

    Every field is checked on construction; a bad one raises `UserError`.
    """

    head: Head
    """L gives A and B at once, M one of the two, S one rank of one of the two (§3.1); R, which only imported networks
    have, gives one rank of both."""
    target_modules: dict[str, tuple[int, int]]
    """Module name -> (d_in, d_out). The order numbers the modules in E[m] and is kept in the file."""
    num_layers: int
    d_emb: int
    """Size of the task input; equal to `num_tasks` for one-hot inputs."""
    rank: int = 8
    alpha: float = 16.0
    use_rslora: bool = True
    task_input: TaskInput = "text"
    """`text`: a description's embedding; `one_hot`; `learned`: one trained vector of `d_emb` a task (§3.2)."""
    num_tasks: int | None = None
    """Number of tasks for the inputs `one_hot` and `learned`; None for `text`."""
    task_names: list[str] | None = None
    """Their names, in the order of their numbers, where they are known."""
    offset: Offset = "none"
    """`factors`: added to A and B (Eq. 6); `delta`: a ΔW of its own (Eq. 8)."""
    z_score: bool = False
    """The network predicts z-scores of the weights (App. D)."""
    dropout: float = 0.05
    """Inside the MLP blocks (Fig. 8), in training only."""
    latent_size: int = 128
    """Width of the blocks' inputs (Fig. 8): half of it is the task's encoding, a quarter the module's and the layer's
    each; inside the blocks are four times as many values."""
    head_size: int = 512
    """Size of a head's input (Fig. 8)."""
    rank_embedding: RankEmbedding = "plain"
    """Head S: whether rank embeddings are added as they are (Fig. 9), or pass through mlp2 first, as in the public
    implementation."""
    module_order_assumed: bool = False
    """Whether the order of `target_modules` is a guess, because the file that was imported does not say it."""
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2"
    embedder_revision: str | None = None
    base_model: str | None = None
    base_revision: str | None = None
    chat_template: str | None = None
    """The template that the adapters were trained with; None: the base model's own."""
    prompt_style: PromptStyle = "input"
    """What the prompts in training held: the input alone, the description on the line before it, or, as in the public
    implementation, a definition of the task, a blank line and the input."""
    notice_threshold: float | None = None
    """Cosine to the nearest training description under which a notice is shown; None: never."""

    def __post_init__(self) -> None:
        for name, kind in {
            "head": Head,
            "task_input": TaskInput,
            "offset": Offset,
            "prompt_style": PromptStyle,
            "rank_embedding": RankEmbedding,
        }.items():
            if getattr(self, name) not in get_args(kind):
                raise _bad(name, f"one of {', '.join(get_args(kind))}", getattr(self, name))
        for name in ("use_rslora", "z_score", "module_order_assumed"):
            if type(getattr(self, name)) is not bool:
                raise _bad(name, "true or false", getattr(self, name))
        for name in ("embedder", "embedder_revision", "base_model", "base_revision", "chat_template"):
            value = getattr(self, name)
            if not (isinstance(value, str) and len(value) <= MAX_TEXT) and (value is not None or name == "embedder"):
                raise _bad(name, f"a text of at most {MAX_TEXT:,} characters", value)
            check_text(value or "", f"The config's {name}")
        self.num_layers = _integer("num_layers", self.num_layers, MAX_LAYERS)
        self.d_emb = _integer("d_emb", self.d_emb, MAX_SIZE if self.task_input != "one_hot" else MAX_TASKS)
        self.rank = _integer("rank", self.rank, MAX_RANK)
        self.head_size = _integer("head_size", self.head_size, MAX_SIZE)
        self.latent_size = _integer("latent_size", self.latent_size, MAX_SIZE, smallest=4)
        if self.rank_embedding != "plain" and self.head != "S":
            raise _bad("rank_embedding", f"plain for head {self.head}", self.rank_embedding)
        self.alpha = _number("alpha", self.alpha, 0, 1e6)
        self.dropout = _number("dropout", self.dropout, 0, 0.99)
        if self.alpha == 0:
            raise _bad("alpha", "a number above 0", self.alpha)
        if self.notice_threshold is not None:
            self.notice_threshold = _number("notice_threshold", self.notice_threshold, -1, 1)
        self._check_target_modules()
        self._check_tasks()

    def _check_target_modules(self) -> None:
        modules = self.target_modules
        if not isinstance(modules, dict) or not 1 <= len(modules) <= MAX_MODULES:
            raise _bad("target_modules", f"1 to {MAX_MODULES} names with their (d_in, d_out)", modules)
        for name, sizes in modules.items():
            # PyTorch does not take a dot in a parameter's name.
            if not isinstance(name, str) or not 1 <= len(name) <= 100 or "." in name:
                raise _bad("target_modules", "names without a dot, such as q_proj", name)
            if not isinstance(sizes, (tuple, list)) or len(sizes) != 2:
                raise _bad(f"target_modules: {name}", "two sizes, d_in and d_out", sizes)
            modules[name] = tuple(_integer(f"target_modules: {name}", size, MAX_SIZE) for size in sizes)

    def _check_tasks(self) -> None:
        if self.task_input == "text":
            if self.num_tasks is not None:
                raise _bad("num_tasks", "null when the task input is text", self.num_tasks)
            if self.task_names is not None:
                raise _bad("task_names", "null when the task input is text", self.task_names)
            return
        self.num_tasks = _integer("num_tasks", self.num_tasks, MAX_TASKS)
        if self.task_input == "one_hot" and self.d_emb != self.num_tasks:
            raise _bad("d_emb", f"num_tasks ({self.num_tasks}) when the task input is one_hot", self.d_emb)
        names = self.task_names
        if names is None:
            return
        if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= MAX_TEXT for name in names):
            raise _bad("task_names", f"texts of at most {MAX_TEXT:,} characters", names)
        if len(names) != self.num_tasks or len(set(names)) < len(names):
            raise _bad("task_names", f"num_tasks ({self.num_tasks}) different names", names)

    @property
    def scale(self) -> float:
        """What ΔW = scale · B A is scaled by: alpha / √rank with rsLoRA, alpha / rank without."""
        return lora_scale(self.alpha, self.rank, self.use_rslora)

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
        return cls(**values | {"target_modules": {name: (d_in, d_out) for name, d_in, d_out in modules}})

    def save(self, path: str | Path) -> None:
        """Write the config as JSON to `path`, whole or not at all."""
        write_atomic(Path(path), (json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "HyperLoRAConfig":
        """Read what `save` wrote. Raises `UserError` where the file is missing, damaged, too large or says nonsense."""
        return cls.from_dict(read_json(path, MAX_FILE))


def lora_scale(alpha: float, rank: int, use_rslora: bool) -> float:
    """LoRA's scale: alpha / √rank with rsLoRA, alpha / rank without."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def read_json(path: str | Path, max_bytes: int) -> Any:
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


def _bad(name: str, wanted: str, value: object) -> UserError:
    return UserError(f"The config's {name} should be {wanted}, not {str(value)[:80]!r}.")


def _integer(name: str, value: object, largest: int, smallest: int = 1) -> int:
    if type(value) is not int or not smallest <= value <= largest:
        raise _bad(name, f"a whole number from {smallest} to {largest:,}", value)
    return value


def _number(name: str, value: object, smallest: float, largest: float) -> float:
    # NaN fails the comparison.
    if type(value) not in (int, float) or not smallest <= value <= largest:
        raise _bad(name, f"a number from {smallest:g} to {largest:g}", value)
    return float(value)
