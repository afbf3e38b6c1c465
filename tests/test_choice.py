"""What is loaded: what the options name, or the best that the machine can run, and the mini model where that fails."""

import argparse
import json

import pytest
import torch
from huggingface_hub import errors

import app
from hyperlora import choice, devices, hub, memory
from hyperlora.__main__ import _parser
from hyperlora.choice import Choice, Pair
from hyperlora.devices import Device, device_named
from hyperlora.errors import UserError
from hyperlora.presets import PRESETS

MISTRAL, LLAMA, GEMMA, MINI = (PRESETS[name] for name in ("mistral-7b", "llama-3.1-8b", "gemma-2-2b", "mini"))
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
INDEX = json.dumps({"weight_map": {str(i): shard for i, shard in enumerate(SHARDS)}})


def options(*arguments: str) -> argparse.Namespace:
    return app.parse_arguments([*arguments])


@pytest.fixture
def gpu(monkeypatch):
    """gpu(free, bfloat16=True): this machine's only GPU has that many GB free; None: there is none."""

    def set_gpu(free: float | None, bfloat16: bool = True) -> None:
        found = [] if free is None else [Device("cuda:0", free * 1e9, bfloat16)]
        monkeypatch.setattr(devices, "gpus", lambda: found)

    set_gpu(24)
    monkeypatch.setattr(choice, "find_spec", lambda name: object())  # bitsandbytes is installed
    return set_gpu


@pytest.fixture
def online(fake_hub, monkeypatch):
    """A Hub that has what the presets name, of which the user may read Mistral's and Gemma's."""
    for preset in (MISTRAL, LLAMA, GEMMA):
        files = {"config.json": 600, "tokenizer.json": 2e6, "pytorch_model-00001-of-00003.bin": 5e9}
        fake_hub.add(preset.base, files | dict.fromkeys(SHARDS, 4.8e9) | {"model.safetensors.index.json": INDEX})
        inside = preset.hyperlora_subfolder
        fake_hub.add(preset.hyperlora, {f"{inside}/hypermod.pt": 235e6, f"{inside}/args.yaml": 3000})
    fake_hub.add(MISTRAL.embedder, {"config.json": 1000, "tokenizer.json": 2e5, "model.safetensors": 1.7e9})
    fake_hub.gated = {LLAMA.base}
    monkeypatch.setattr(hub, "check_disk", lambda size: 100e9)
    return fake_hub


def fetch(hub, preset, *names: str) -> None:
    """Into the cache: all that a preset needs, but the files called `names`."""
    for name, revision in (
        (preset.base, preset.base_revision),
        (preset.hyperlora, preset.hyperlora_revision),
        (preset.embedder, preset.embedder_revision),
    ):
        for file in hub.repos[name]:
            if file not in names:
                hub.fetch(name, file, revision)


@pytest.fixture
def loads(monkeypatch):
    """What `pipeline` was asked for, in place of loading it."""
    asked = []

    def pipeline(preset, **options):
        asked.append({"preset": preset} | options)
        return preset

    monkeypatch.setattr("hyperlora.pipe.pipeline", pipeline)
    return asked


# ---- the best ----


@pytest.mark.parametrize(
    ("free", "preset", "dtype", "bits"),
    [
        (24, MISTRAL, "bfloat16", None),
        (16.5, MISTRAL, "bfloat16", "8bit"),
        (8, MISTRAL, "bfloat16", "4bit"),
        (7, GEMMA, "bfloat16", "8bit"),
        (5, GEMMA, "bfloat16", "4bit"),
        (3, MINI, "float32", None),
    ],
)
def test_the_best_is_what_the_free_memory_allows(free, preset, dtype, bits, online, gpu):
    gpu(free)
    best = choice.best_preset()
    assert (best.pair.preset, best.dtype, best.quantize) == (preset, dtype, bits)
    assert best.device == ("cpu" if preset is MINI else "cuda:0")


def test_the_need_counts_the_loading_peak(gpu):
    """What has to be free is enough for loading, where a linear waits for its bits, and for a chat."""
    shape = memory.HyperShape(memory.SHAPES["mistral-7b"], "L")
    for dtype in ("bfloat16", "8bit", "4bit"):
        peak = sum(memory.loading(shape.base, dtype).values())
        assert memory.serving(shape, dtype, tokens=1, slots=0) >= peak > shape.base.bytes(dtype)
        assert memory.serving(shape, dtype) >= sum(memory.chat(shape, 1, 2048, dtype, 64).values())


def test_the_choice_says_what_and_why_in_a_line(online, gpu):
    best = choice.best_preset()
    assert best.why == (
        "Mistral-7B-Instruct-v0.2 in bfloat16 on cuda:0 takes 18.1 GB of the 24.0 GB that are free, "
        "and a download of 16.3 GB."
    )
    assert best.size == pytest.approx(16.3e9, rel=0.01)
    assert [(repo.name, repo.revision) for repo in best.repos] == [
        (MISTRAL.base, MISTRAL.base_revision),
        (MISTRAL.hyperlora, MISTRAL.hyperlora_revision),
        (MISTRAL.embedder, MISTRAL.embedder_revision),
    ]


def test_an_older_gpu_computes_in_float16(online, gpu):
    gpu(24, bfloat16=False)
    assert choice.best_preset().dtype == "float16"
    gpu(12, bfloat16=False)
    assert (choice.best_preset().dtype, choice.best_preset().quantize) == ("float16", "8bit")


def test_without_a_gpu_it_is_the_mini_model_with_a_line_on_how_to_get_more(online, gpu):
    gpu(None)
    best = choice.best_preset()
    assert best.pair.preset is MINI and best.device == "cpu"
    assert "no GPU that it can use" in best.why and "7.2 GB" in best.why and "--preset mistral-7b" in best.why
    assert "\n" not in best.why and online.asked == []
    assert choice.best_preset("cpu").pair.preset is MINI


def test_too_little_memory_is_said(online, gpu):
    gpu(3)
    assert "gemma-2-2b-it in 4 bits needs 5.0 GB of memory, and cuda:0 has 3.0 GB free" in choice.best_preset().why


def test_weights_that_are_here_need_no_network(online, gpu):
    fetch(online, MISTRAL)
    online.down = errors.HTTPError("no network")
    best = choice.best_preset()
    assert best.pair.preset is MISTRAL and best.repos == () and best.size == 0
    assert best.why.endswith("that are free.") and online.asked == []


def test_a_hub_that_does_not_answer_is_asked_once(online, gpu):
    online.down = errors.HTTPError("no network")
    best = choice.best_preset()
    assert best.pair.preset is MINI and "check the network" in best.why
    assert len(online.asked) == 1
    fetch(online, GEMMA, SHARDS[2])
    assert choice.best_preset().pair.preset is MINI
    fetch(online, GEMMA)
    assert choice.best_preset().pair.preset is GEMMA


def test_offline_mode_is_respected(online, gpu, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in choice.best_preset().why and online.asked == []


def test_a_gated_model_is_passed_over_with_what_to_do(online, gpu):
    gpu(7)
    online.gated = {LLAMA.base, GEMMA.base}
    best = choice.best_preset()
    assert best.pair.preset is MINI and "google/gemma-2-2b-it is gated: accept its terms" in best.why


def test_a_full_disk_is_said(online, gpu, monkeypatch):
    def check_disk(size):
        raise UserError("A download of 16.4 GB does not fit.")

    monkeypatch.setattr(hub, "check_disk", check_disk)
    assert choice.best_preset().why == "This is the mini model. A download of 16.4 GB does not fit."


def test_few_bits_need_bitsandbytes(online, gpu, monkeypatch):
    gpu(12)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    best = choice.best_preset()
    assert best.pair.preset is GEMMA  # in bfloat16
    gpu(7)
    assert "pip install bitsandbytes" in choice.best_preset().why


# ---- what is named ----


def test_a_preset_that_is_named_is_that_or_an_error(online, gpu):
    assert choice.choose(options("--preset", "gemma-2-2b")).pair.preset is GEMMA
    with pytest.raises(UserError, match="is gated"):
        choice.choose(options("--preset", "llama-3.1-8b"))
    gpu(3)
    with pytest.raises(UserError, match=r"in 4 bits needs 7\.2 GB of memory, and cuda:0 has 3\.0 GB free"):
        choice.choose(options("--preset", "mistral-7b"))
    with pytest.raises(UserError, match="There is no preset"):
        choice.choose(options("--preset", "maxi"))


def test_the_options_fix_the_precision(online, gpu):
    for arguments, expected in {
        (): ("bfloat16", None),
        ("--quantize", "4bit"): ("bfloat16", "4bit"),
        ("--dtype", "float16"): ("float16", None),
        ("--dtype", "float16", "--quantize", "8bit"): ("float16", "8bit"),
    }.items():
        chosen = choice.choose(options("--preset", "mistral-7b", *arguments))
        assert (chosen.dtype, chosen.quantize) == expected
    with pytest.raises(UserError, match="float32 needs"):
        choice.choose(options("--preset", "mistral-7b", "--dtype", "float32"))


def test_without_a_gpu_a_named_preset_runs_on_the_cpu_if_there_is_room(online, gpu, monkeypatch):
    gpu(None)
    monkeypatch.setattr(devices, "free_memory", lambda: 32e9)
    chosen = choice.choose(options("--preset", "mistral-7b"))
    assert (chosen.device, chosen.dtype, chosen.quantize) == ("cpu", "bfloat16", None)
    monkeypatch.setattr(devices, "free_memory", lambda: 8e9)
    with pytest.raises(UserError, match=r"cpu has 8\.0 GB free"):
        choice.choose(options("--preset", "mistral-7b"))


def test_a_small_base_runs_in_float32_on_the_cpu_beside_any_gpu(gpu, tiny_base, tiny_hyperlora):
    chosen = choice.choose(options("--base", str(tiny_base), "--hyperlora", str(tiny_hyperlora)))
    assert (chosen.device, chosen.dtype, chosen.why, chosen.size) == ("cpu", "float32", "", 0)
    assert choice.choose(options("--preset", "mini", "--device", "cuda")).device == "cuda:0"


def test_a_base_without_a_hypernetwork_gets_the_training_command(gpu):
    with pytest.raises(UserError, match="There is no hypernetwork for Qwen/Qwen3-8B") as caught:
        choice.choose(options("--base", "Qwen/Qwen3-8B"))
    assert "python -m training.sft --base Qwen/Qwen3-8B" in str(caught.value)
    assert "python -m training.plan --base Qwen/Qwen3-8B" in str(caught.value)


def test_names_may_carry_a_revision(tiny_hyperlora, tmp_path):
    pair = choice.named_pair(None, "owner/base@v1", "owner/hyperlora@0123abc")
    assert pair == Pair(None, "owner/base", "v1", "owner/hyperlora", "0123abc")
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert choice.named_pair("mini", str(folder), None) == Pair(MINI, str(folder))


def test_a_preset_is_known_by_its_base_and_a_hypernetwork_knows_its_base(tiny_hyperlora, tmp_path):
    assert choice.named_pair(None, GEMMA.base, None) == Pair(GEMMA)
    pair = choice.named_pair(None, None, str(tiny_hyperlora))
    assert (pair.base, pair.hyperlora) == ("tiny-base", str(tiny_hyperlora))
    (tmp_path / "hypermod.pt").touch()  # the public format
    with pytest.raises(UserError, match=r"args\.yaml is missing"):
        choice.named_pair(None, None, str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    arguments = "training_task: sft\ntarget_modules: [q_proj]\nmodel_dir: models/gemma-2-2b-it\n"
    (tmp_path / "args.yaml").write_text(arguments)
    assert choice.named_pair(None, None, str(tmp_path)).base == GEMMA.base
    (tmp_path / "args.yaml").write_text(arguments.replace("models/gemma-2-2b-it", '""'))
    with pytest.raises(UserError, match="does not say which base model it is for: name that with --base"):
        choice.named_pair(None, None, str(tmp_path))


def test_the_encoder_of_a_folder_in_the_public_format_is_announced_too(online, gpu, tiny_base, tmp_path):
    for name in ("hypermod.pt", "adapter_config.json"):
        (tmp_path / name).touch()
    arguments = "training_task: sft\ntarget_modules: [q_proj]\nemb_model: Alibaba-NLP/gte-large-en-v1.5\n"
    (tmp_path / "args.yaml").write_text(arguments)
    chosen = choice.choose(options("--base", str(tiny_base), "--hyperlora", str(tmp_path)))
    assert [(repo.name, repo.revision) for repo in chosen.repos] == [(MISTRAL.embedder, MISTRAL.embedder_revision)]
    assert chosen.size == pytest.approx(1.7e9, rel=0.01)


@pytest.mark.parametrize("name", ["", "  ", "@main"])
def test_a_name_that_is_empty_names_no_model(name):
    for option in ("base", "hyperlora"):
        with pytest.raises(UserError, match=f"--{option} is '{name}', which names no model"):
            choice.named_pair(None, **({"base": "b", "hyperlora": "h"} | {option: name}))


def test_the_encoder_may_be_on_another_device(online, gpu, loads):
    fetch(online, MISTRAL)
    choice.choose(options("--embedder_device", "cuda")).load()
    assert loads[0]["embedder_device"] == "cuda:0"
    with pytest.raises(UserError, match="The device 'cuda:7' cannot be used here"):
        choice.choose(options("--embedder_device", "cuda:7"))


def test_what_was_looked_at_is_what_is_loaded(online, gpu, loads, tiny_hyperlora):
    """A base without a revision is the commit that was measured, also if the Hub has a newer one by then."""
    online.add("owner/base", {"config.json": (json.dumps({"model_type": "other"})), "model.safetensors": 3e9})
    chosen = choice.choose(options("--base", "owner/base", "--hyperlora", str(tiny_hyperlora)))
    commit = online.commit("owner/base")
    assert chosen.pair.base_revision == chosen.repos[0].revision == commit
    chosen.load()
    assert loads == [
        {
            "preset": None,
            "base": "owner/base",
            "base_revision": commit,
            "hyperlora": str(tiny_hyperlora),
            "device": "cuda:0",
            "dtype": torch.bfloat16,
            "embedder_device": "cpu",
        }
    ]


def test_a_device_that_is_not_there(gpu):
    with pytest.raises(UserError, match="The device 'cuda:1' cannot be used here: PyTorch can use cuda:0, cpu"):
        choice.choose(options("--device", "cuda:1"))
    assert device_named("cuda").name == "cuda:0"


# ---- opening it ----


class Visitor:
    """Hears what is said, and answers what is asked."""

    def __init__(self, answer: Exception | None = None):
        self.answer, self.heard, self.questions, self.progress = answer, [], [], []

    def ask(self, question: str) -> None:
        self.questions.append(question)
        if self.answer is not None:
            raise self.answer

    def open(self, args: argparse.Namespace, chosen: Choice | None = None):
        return choice.open_pipeline(args, self.ask, self.heard.append, lambda *pair: self.progress.append(pair), chosen)


def test_a_large_download_is_asked_for_then_fetched_then_loaded(online, gpu, loads):
    visitor = Visitor()
    assert visitor.open(options()) == "mistral-7b"
    assert visitor.questions == ["Mistral-7B-Instruct-v0.2 needs a download of 16.3 GB; 100 GB of the disk are free."]
    done, sizes = zip(*visitor.progress, strict=True)
    assert done[-1] == sizes[-1] == pytest.approx(16.3e9, rel=0.01) and list(done) == sorted(done)
    expected = {"preset": "mistral-7b", "device": "cuda:0", "dtype": torch.bfloat16, "embedder_device": "cpu"}
    assert loads == [expected]
    again = Visitor()
    again.open(options())
    assert again.questions == again.progress == []


def test_nobody_is_asked_for_a_small_download_or_with_yes(online, gpu, loads):
    fetch(online, MISTRAL, f"{MISTRAL.hyperlora_subfolder}/args.yaml", "tokenizer.json", "config.json")
    for name in ("config.json", f"{MISTRAL.hyperlora_subfolder}/args.yaml"):
        assert not any(path.is_file() for path in online.cache.rglob(name))
    visitor = Visitor()
    visitor.open(options())
    assert visitor.questions == []
    visitor = Visitor()
    visitor.open(options("--preset", "gemma-2-2b", "--yes"))
    assert visitor.questions == [] and visitor.progress


@pytest.mark.parametrize("arguments", [[], ["--preset", "mistral-7b"]])
def test_a_download_that_a_visitor_does_not_want_is_the_mini_model(arguments, online, gpu, loads):
    visitor = Visitor(hub.Cancelled())
    assert visitor.open(options(*arguments)) == "mini"
    assert visitor.heard[-1] == "This is the mini model. Mistral-7B-Instruct-v0.2 was not downloaded."


def test_what_fails_is_the_mini_models_turn_unless_something_was_named(online, gpu, loads):
    refusal = UserError("Allow it with --yes.")
    visitor = Visitor(refusal)
    assert visitor.open(options()) == "mini"
    assert visitor.heard[-1] == "This is the mini model. Allow it with --yes."
    with pytest.raises(UserError, match="Allow it with --yes"):
        Visitor(refusal).open(options("--preset", "mistral-7b"))
    chosen = choice.choose(options())
    online.down = errors.HTTPError("the network broke")
    visitor = Visitor()
    assert visitor.open(options(), chosen) == "mini"
    assert "could not be fetched from the Hub (the network broke)" in visitor.heard[-1]
    assert {asked["preset"] for asked in loads} == {"mini"}


def test_a_gpu_that_fills_up_while_it_loads_is_a_sentence(online, gpu, monkeypatch):
    def pipeline(preset, **options):
        if preset != "mini":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return preset

    monkeypatch.setattr("hyperlora.pipe.pipeline", pipeline)
    visitor = Visitor()
    assert visitor.open(options()) == "mini"
    assert "The memory of cuda:0 ran out while Mistral-7B-Instruct-v0.2 was loaded." in visitor.heard[-1]


def test_the_page_and_the_command_line_have_the_same_options():
    names = {"preset", "base", "hyperlora", "device", "dtype", "quantize", "embedder_device", "yes"}
    values = ["--preset", "mini", "--base", "b", "--hyperlora", "h", "--device", "cuda", "--dtype", "float16"]
    values += ["--quantize", "4bit", "--embedder_device", "cuda", "--yes"]
    page = vars(options(*values))
    line = vars(_parser().parse_args(["chat", "Sort.", *values]))
    assert names <= page.keys() and all(page[name] == line[name] for name in names)
