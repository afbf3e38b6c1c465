"""What many tests share: a tiny base model on disk, small configs, random adapters."""

import copy
import hashlib
import json
import os
import shutil
import signal
import string
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import close_session, errors
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer, decoders, models
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hyperlora import choice, devices, hub, presets, smollm2
from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.chat import ChatStream
from hyperlora.config import HyperLoRAConfig
from hyperlora.devices import Device
from hyperlora.embedder import SentenceEmbedder
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.pipe import Pipeline
from hyperlora.presets import PRESETS, SMALL_PRESET
from hyperlora.prompt import format_prompt
from tests.hub_server import HOSTS, Hub

TINY = {  # of a base model, as every config of transformers takes it
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

TARGETS = {"q_proj": (64, 64), "v_proj": (64, 32)}  # the tiny base's
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
CHAT_TEMPLATE = (  # the form of Mistral-Instruct: <s>[INST] text [/INST] answer</s>
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported.') }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Mistral, one token a character; q_proj is 64 -> 64, v_proj 64 -> 32."""
    folder = tmp_path_factory.mktemp("tiny_base")
    characters = [character for character in string.printable if character.isprintable()]
    vocabulary = {token: i for i, token in enumerate(SPECIAL + characters)}
    characterwise = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    characterwise.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characterwise,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["[INST]", "[/INST]"],
        model_max_length=256,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(
            MistralConfig(
                vocab_size=len(vocabulary),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                sliding_window=None,
                bos_token_id=vocabulary["<s>"],
                eos_token_id=vocabulary["</s>"],
                pad_token_id=vocabulary["</s>"],
            )
        )
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def terse_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_base`, whose answers end after 40 tokens: it hardly ever writes an end token."""
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("terse_base"), dirs_exist_ok=True)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"max_new_tokens": 40}))
    return folder


@pytest.fixture
def tiny_model(tiny_base: Path) -> MistralForCausalLM:
    """The model in `tiny_base`, in float32 and evaluation mode; a new one for every test."""
    return MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """make_adapter(seed, rank=8, **fields): a random adapter of the tiny base whose effect is easily seen."""

    def make(seed: int, rank: int = 8, **fields) -> Adapter:
        random = torch.Generator().manual_seed(seed)
        weights = {
            module: (
                torch.randn(2, rank, d_in, generator=random) / 8,
                torch.randn(2, d_out, rank, generator=random) / 8,
            )
            for module, (d_in, d_out) in TARGETS.items()
        }
        return Adapter(weights, **{"alpha": 16.0, "use_rslora": True} | fields)

    return make


@pytest.fixture
def assert_greedy() -> Callable[..., None]:
    """assert_greedy(model, prompt, answer, tolerance=1e-4, processor=None): each token of the answer is the likeliest.

    `model` reads prompt and answer, both ids, at once, alone and without a cache. That rounds in another way than
    decoding does, or decoding in a batch: so a token may be behind the likeliest by the tolerance, which in float32 is
    a hundred times the rounding. `processor` changes the scores as in `generate`.
    """

    def check(model, prompt: list[int], answer: list[int], tolerance: float = 1e-4, processor=None) -> None:
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 :].float()
        for i, token in enumerate(answer):
            scores = logits[i] if processor is None else processor(ids[:, : len(prompt) + i], logits[i : i + 1])[0]
            assert scores.max() - scores[token] <= tolerance, f"token {i} of {len(answer)}"

    return check


@pytest.fixture
def read_ids() -> Callable[[ChatStream], list[int]]:
    """read_ids(stream): the tokens of an answer, whose text is theirs."""

    def read(stream: ChatStream) -> list[int]:
        items, take = [], stream._next
        stream._next = lambda: items.append(take()) or items[-1]
        text = "".join(stream)
        ids = [item for item in items if isinstance(item, int)]
        assert text == stream.text == stream._tokenizer.decode(ids, skip_special_tokens=True)
        return ids

    return read


@pytest.fixture
def answers(tiny_base: Path, assert_greedy: Callable, read_ids: Callable) -> Callable[..., str]:
    """answers(stream, prompt, adapter, n, **options): the answer has n tokens (None: any number), the likeliest under
    the tiny base with the adapter's delta W added to its weights; returns its text."""
    base = MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def check(stream: ChatStream, prompt: str, adapter=None, n: int | None = None, **options) -> str:
        model = copy.deepcopy(base)
        for module in adapter.weights if adapter else ():
            for i, layer in enumerate(model.model.layers):
                getattr(layer.self_attn, module).weight.data += adapter.delta_w(module, i)
        ids = read_ids(stream)
        assert n is None or len(ids) == n
        assert_greedy(model, format_prompt(tokenizer, prompt), ids, **options)
        return stream.text

    return check


@pytest.fixture
def in_a_fork() -> Callable[[Callable[[], object]], str]:
    """in_a_fork(work): what `work` returns, or raises, in a forked process; "" where it hangs."""

    def run(work: Callable[[], object]) -> str:
        receive, send = os.pipe()
        if (child := os.fork()) == 0:
            signal.alarm(60)
            try:
                text = str(work())
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(send, text.encode())
            os._exit(0)
        os.close(send)
        with os.fdopen(receive) as file:
            text = file.read()
        os.waitpid(child, 0)
        return text

    return run


@pytest.fixture
def make_config() -> Callable[..., HyperLoRAConfig]:
    """make_config(**fields): a hypernetwork for the tiny base, head M, task inputs of 16."""

    def make(**fields) -> HyperLoRAConfig:
        return HyperLoRAConfig(**{"head": "M", "target_modules": dict(TARGETS), "num_layers": 2, "d_emb": 16} | fields)

    return make


@pytest.fixture(scope="session")
def minilm() -> SentenceEmbedder:
    """all-MiniLM-L6-v2 from its package, loaded once."""
    return SentenceEmbedder()


@pytest.fixture(scope="session")
def tiny_hyperlora(minilm: SentenceEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hypernetwork for the tiny base: head M, random weights whose adapters are easily told apart."""
    descriptions = ["Reverse the order of the words.", "Add the two numbers.", "Write the word in capital letters."]
    config = HyperLoRAConfig(
        head="M", target_modules=dict(TARGETS), num_layers=2, d_emb=384, base_model="tiny-base", notice_threshold=0.5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hyperlora = HyperLoRA(config)
        for head in hyperlora.network.heads.values():
            torch.nn.init.normal_(head.weight, std=0.1)
    hyperlora.set_descriptions(descriptions, minilm.embed(descriptions))
    folder = tmp_path_factory.mktemp("tiny_hyperlora")
    hyperlora.save_pretrained(folder)
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the one in the user's cache where HyperLoRA keeps what it makes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))  # of other processes
    return tmp_path / "cache" / "hyperlora"


@pytest.fixture
def open_pipe() -> Iterator[Callable[..., Pipeline]]:
    """open_pipe(base, targets, **fields): a pipeline over a folder or a GGUF file, its hypernetwork not trained."""
    opened = []

    def open_(base: Path, targets: Sequence[str] = ("q_proj", "v_proj"), **fields) -> Pipeline:
        model, tokenizer = load_base(base)
        adapted = AdaptedModel(model, list(targets))
        config = HyperLoRAConfig("L", adapted.target_modules, adapted.num_layers, d_emb=8, **fields)
        opened.append(Pipeline(HyperLoRA(config), adapted, tokenizer, files=base))
        return opened[-1]

    yield open_
    for pipe in opened:
        pipe.close()


@pytest.fixture
def adapter_for() -> Callable[..., Adapter]:
    """adapter_for(pipe, rank=4, **fields): a random adapter for a pipeline, whose effect is easily seen."""

    def make(pipe: Pipeline, rank: int = 4, **fields) -> Adapter:
        random = torch.Generator().manual_seed(rank)
        weights = {
            module: (
                torch.randn(pipe.adapted.num_layers, rank, d_in, generator=random) / 8,
                torch.randn(pipe.adapted.num_layers, d_out, rank, generator=random) / 8,
            )
            for module, (d_in, d_out) in pipe.adapted.target_modules.items()
        }
        return Adapter(weights, **{"alpha": 16.0, "use_rslora": True} | fields)

    return make


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The real SmolLM2-135M-Instruct as a folder, converted once and kept in the user's cache."""
    try:
        return smollm2.base_folder()
    except UserError as error:
        pytest.skip(f"SmolLM2 cannot be had: {error}")


@pytest.fixture(scope="session")
def smollm2_base(smollm2_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The real SmolLM2-135M-Instruct in float32 and its tokenizer, loaded once: leave both as they are."""
    return load_base(smollm2_folder)


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that is asked over HTTP; the machine is logged in there as somebody else. No retry waits."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # it has another protocol, in Rust
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, HOSTS)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.hangs.set()
    close_session()  # whose time limit may be a test's
    server.shutdown()
    server.server_close()


RESPONSE = SimpleNamespace(status_code=404, headers={}, request=None)


class FakeHub:
    """Stands for huggingface_hub's functions: repositories by name, of which a file is its size or its text."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.repos: dict[str, dict[str, float | str]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.down: Exception | None = None

    def add(self, name: str, files: dict[str, float | str], gated: bool = False) -> None:
        self.repos.setdefault(name, {}).update(files)
        self.gated |= {name} if gated else set()

    def commit(self, name: str, revision: str | None = None) -> str:
        return revision or hashlib.sha1(name.encode()).hexdigest()

    def folder(self, name: str, revision: str | None = None) -> Path:
        return self.cache / name / self.commit(name, revision)

    def fetch(self, name: str, file: str, revision: str | None = None) -> None:
        """Into the cache; a file that is a size is empty there."""
        path = self.folder(name, revision) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.repos[name][file]
        path.write_text(content if isinstance(content, str) else "")

    def check(self, name: str) -> None:
        self.asked.append(name)
        if self.down is not None:
            raise self.down
        if name not in self.repos:
            raise errors.RepositoryNotFoundError(f"404: {name}", response=RESPONSE)

    def sizes(self, name: str, patterns: list[str]) -> dict[str, float]:
        names = filter_repo_objects(self.repos[name], allow_patterns=patterns)
        files = {file: self.repos[name][file] for file in names}
        return {file: len(content) if isinstance(content, str) else content for file, content in files.items()}

    # ---- what is replaced ----

    def model_info(self, name: str, *, revision: str | None, files_metadata: bool, timeout: float) -> SimpleNamespace:
        self.check(name)
        siblings = [SimpleNamespace(rfilename=file, size=size) for file, size in self.sizes(name, ["*"]).items()]
        return SimpleNamespace(sha=self.commit(name, revision), gated=name in self.gated, siblings=siblings)

    def auth_check(self, name: str) -> None:
        if name in self.gated:
            raise errors.GatedRepoError(f"403: {name}", response=RESPONSE)

    def try_to_load_from_cache(self, name: str, file: str, revision: str | None = None) -> str | None:
        path = self.folder(name, revision) / file
        return str(path) if path.is_file() else None

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool, tqdm_class: type
    ) -> str:
        folder = self.folder(name, revision)
        if local_files_only:
            if not folder.is_dir():
                raise errors.LocalEntryNotFoundError(f"{name} is not in the cache")
            return str(folder)
        self.check(name)
        self.auth_check(name)
        if tqdm_class is None:  # the library's own bar
            tqdm_class = partial(tqdm, disable=True)
        bar = tqdm_class(total=0, unit="B", desc="bytes")
        with tqdm_class(total=0, desc="files") as files:
            for file, size in self.sizes(name, allow_patterns).items():
                if not (folder / file).is_file():
                    for _ in range(10):
                        bar.update(size / 10)
                    self.fetch(name, file, revision)
                files.update()
        return str(folder)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """An empty Hub that can be reached, and an empty cache."""
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    for name in ("snapshot_download", "try_to_load_from_cache"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))
    return hub


SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
INDEX = json.dumps({"weight_map": {str(i): shard for i, shard in enumerate(SHARDS)}})


@pytest.fixture
def gpu(monkeypatch):
    """gpu(free, bfloat16=True): this machine's only GPU has that many GB free; None: there is none."""

    def set_gpu(free: float | None, bfloat16: bool = True) -> None:
        found = [] if free is None else [Device("cuda:0", free * 1e9, bfloat16)]
        monkeypatch.setattr(devices, "gpus", lambda: found)

    set_gpu(24)
    monkeypatch.setattr(choice, "find_spec", lambda name: object())  # bitsandbytes is installed
    monkeypatch.setattr(choice, "fast_bfloat16", lambda device: device != "cpu")
    return set_gpu


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_hyperlora: Path) -> Callable[[float], None]:
    """SmolLM2's package is installed, and a hypernetwork for it bundled; packaged(size): such a download brings it."""
    assets, real = tmp_path / "assets", presets.assets_dir()
    (assets / "smollm2").mkdir(parents=True)
    for path in real.iterdir():
        if path.name != "smollm2":
            (assets / path.name).symlink_to(path)
    (assets / "smollm2" / "hyperlora-M").symlink_to(tiny_hyperlora)
    monkeypatch.setattr(presets, "assets_dir", lambda: assets)

    def set_size(size: float) -> None:
        monkeypatch.setattr(smollm2, "missing", lambda: size)

    set_size(0.0)
    return set_size


@pytest.fixture
def online(fake_hub, packaged, monkeypatch):
    """A Hub that has what the presets name, of which the user may read Mistral's and Gemma's; SmolLM2 is here."""
    for preset in (preset for preset in PRESETS.values() if preset.name not in (SMALL_PRESET, "mini")):
        files = {"config.json": 600, "tokenizer.json": 2e6, "pytorch_model-00001-of-00003.bin": 5e9}
        fake_hub.add(preset.base, files | dict.fromkeys(SHARDS, 4.8e9) | {"model.safetensors.index.json": INDEX})
        inside = preset.hyperlora_subfolder
        fake_hub.add(preset.hyperlora, {f"{inside}/hypermod.pt": 235e6, f"{inside}/args.yaml": 3000})
    fake_hub.add(
        PRESETS["mistral-7b"].embedder, {"config.json": 1000, "tokenizer.json": 2e5, "model.safetensors": 1.7e9}
    )
    fake_hub.gated = {PRESETS["llama-3.1-8b"].base}
    monkeypatch.setattr(hub, "check_disk", lambda size: 100e9)
    return fake_hub


@pytest.fixture
def loads(monkeypatch):
    """What `pipeline` was asked for, in place of loading it."""
    asked = []

    def pipeline(preset, **options):
        asked.append({"preset": preset} | {name: value for name, value in options.items() if value is not None})
        return preset

    monkeypatch.setattr("hyperlora.pipe.pipeline", pipeline)
    return asked
