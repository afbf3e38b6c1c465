"""What the arguments name, and what is opened: that, or a smaller model where nothing was named and something fails."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import errors

from hyperlora import hub
from hyperlora.__main__ import _parser
from hyperlora.arguments import choose, named_pair, open_pipeline
from hyperlora.choice import Choice, Pair
from hyperlora.errors import UserError
from tests.test_choice import GEMMA, MINI, MISTRAL, fetch, options


def test_a_preset_that_is_named_is_that_or_an_error(online, gpu):
    assert choose(options("--preset", "gemma-2-2b")).pair.preset is GEMMA
    with pytest.raises(UserError, match="is gated"):
        choose(options("--preset", "llama-3.1-8b"))
    gpu(3)
    with pytest.raises(UserError, match=r"in 4 bits needs 7\.2 GB of memory, and cuda:0 has 3\.0 GB free"):
        choose(options("--preset", "mistral-7b"))
    with pytest.raises(UserError, match="There is no preset"):
        choose(options("--preset", "maxi"))


def test_the_options_fix_the_precision(online, gpu):
    for arguments, expected in {
        (): ("bfloat16", None),
        ("--quantize", "4bit"): ("bfloat16", "4bit"),
        ("--dtype", "float16"): ("float16", None),
        ("--dtype", "float16", "--quantize", "8bit"): ("float16", "8bit"),
    }.items():
        chosen = choose(options("--preset", "mistral-7b", *arguments))
        assert (chosen.dtype, chosen.quantize) == expected
    with pytest.raises(UserError, match="float32 needs"):
        choose(options("--preset", "mistral-7b", "--dtype", "float32"))


def test_without_a_gpu_a_named_preset_runs_on_the_cpu_if_there_is_room(online, gpu, monkeypatch):
    gpu(None)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=32e9))
    chosen = choose(options("--preset", "mistral-7b"))
    assert (chosen.device, chosen.dtype, chosen.quantize) == ("cpu", "bfloat16", None)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8e9))
    with pytest.raises(UserError, match=r"cpu has 8\.0 GB free"):
        choose(options("--preset", "mistral-7b"))


def test_a_base_without_a_hypernetwork_gets_the_training_command(gpu):
    with pytest.raises(UserError, match="There is no hypernetwork for Qwen/Qwen3-8B") as caught:
        choose(options("--base", "Qwen/Qwen3-8B"))
    assert "python -m training.sft --base Qwen/Qwen3-8B" in str(caught.value)
    assert "python -m training.plan --base Qwen/Qwen3-8B" in str(caught.value)


def test_names_may_carry_a_revision(tiny_hyperlora, tmp_path):
    pair = named_pair(None, "owner/base@v1", "owner/hyperlora@0123abc")
    assert pair == Pair(None, "owner/base", "v1", "owner/hyperlora", "0123abc")
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert named_pair("mini", str(folder), None) == Pair(MINI, str(folder))


def test_a_preset_is_known_by_its_base_and_a_hypernetwork_knows_its_base(tiny_hyperlora, tmp_path):
    assert named_pair(None, GEMMA.base, None) == Pair(GEMMA)
    pair = named_pair(None, None, str(tiny_hyperlora))
    assert (pair.base, pair.hyperlora) == ("tiny-base", str(tiny_hyperlora))
    (tmp_path / "hypermod.pt").touch()  # the public format
    with pytest.raises(UserError, match=r"args\.yaml is missing"):
        named_pair(None, None, str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    arguments = "training_task: sft\ntarget_modules: [q_proj]\nmodel_dir: models/gemma-2-2b-it\n"
    (tmp_path / "args.yaml").write_text(arguments)
    assert named_pair(None, None, str(tmp_path)).base == GEMMA.base
    (tmp_path / "args.yaml").write_text(arguments.replace("models/gemma-2-2b-it", '""'))
    with pytest.raises(UserError, match="does not say which base model it is for: name that with --base"):
        named_pair(None, None, str(tmp_path))


@pytest.mark.parametrize("name", ["", "  ", "@main"])
def test_a_name_that_is_empty_names_no_model(name):
    for option in ("base", "hyperlora"):
        with pytest.raises(UserError, match=f"--{option} is '{name}', which names no model"):
            named_pair(None, **({"base": "b", "hyperlora": "h"} | {option: name}))


def test_the_encoder_may_be_on_another_device(online, gpu, loads):
    fetch(online, MISTRAL)
    choose(options("--embedder_device", "cuda")).load()
    assert loads[0]["embedder_device"] == "cuda:0"
    with pytest.raises(UserError, match="The device 'cuda:7' cannot be used here"):
        choose(options("--embedder_device", "cuda:7"))


class Visitor:
    """Hears what is said, and answers what is asked."""

    def __init__(self, answer: Exception | None = None):
        self.answer, self.heard, self.questions, self.progress = answer, [], [], []

    def ask(self, question: str) -> None:
        self.questions.append(question)
        if self.answer is not None:
            raise self.answer

    def open(self, args: argparse.Namespace, chosen: Choice | None = None):
        return open_pipeline(args, self.ask, self.heard.append, lambda *pair: self.progress.append(pair), chosen)


def test_a_large_download_is_asked_for_then_fetched_then_loaded(online, gpu, loads):
    visitor = Visitor()
    assert visitor.open(options()) == "mistral-7b"
    assert visitor.questions == ["Mistral-7B-Instruct-v0.2 needs a download of 16.3 GB; 100 GB of the disk are free."]
    done, sizes = zip(*visitor.progress, strict=True)
    assert done[-1] == sizes[-1] == pytest.approx(16.3e9, rel=0.01) and list(done) == sorted(done)
    expected = {"preset": "mistral-7b", "device": "cuda:0", "dtype": "bfloat16", "embedder_device": "cpu"}
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
def test_a_download_that_a_visitor_does_not_want_is_smollm2(arguments, online, gpu, loads):
    visitor = Visitor(hub.Cancelled())
    assert visitor.open(options(*arguments)) == "smollm2-135m"
    assert visitor.heard[-1].endswith("that are free. Mistral-7B-Instruct-v0.2 was not downloaded.")


def test_what_fails_is_smollm2s_turn_unless_something_was_named(online, gpu, loads):
    refusal = UserError("Allow it with --yes.")
    visitor = Visitor(refusal)
    assert visitor.open(options()) == "smollm2-135m"
    assert visitor.heard[-1].endswith("that are free. Allow it with --yes.")
    with pytest.raises(UserError, match="Allow it with --yes"):
        Visitor(refusal).open(options("--preset", "mistral-7b"))
    chosen = choose(options())
    online.down = errors.HTTPError("the network broke")
    visitor = Visitor()
    assert visitor.open(options(), chosen) == "smollm2-135m"
    assert "could not be fetched from the Hub (the network broke)" in visitor.heard[-1]
    assert {asked["preset"] for asked in loads} == {"smollm2-135m"}


def test_a_gpu_that_fills_up_while_it_loads_is_a_sentence(online, gpu, monkeypatch):
    def pipeline(preset, **options):
        if preset == "mistral-7b":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return preset

    monkeypatch.setattr("hyperlora.pipe.pipeline", pipeline)
    visitor = Visitor()
    assert visitor.open(options()) == "smollm2-135m"
    assert "The memory of cuda:0 ran out while Mistral-7B-Instruct-v0.2 was loaded." in visitor.heard[-1]


def test_the_page_and_the_command_line_have_the_same_options():
    names = {"preset", "base", "hyperlora", "device", "dtype", "quantize", "embedder_device", "yes"}
    values = ["--preset", "mini", "--base", "b", "--hyperlora", "h", "--device", "cuda", "--dtype", "float16"]
    values += ["--quantize", "4bit", "--embedder_device", "cuda", "--yes"]
    page = vars(options(*values))
    line = vars(_parser().parse_args(["chat", "Sort.", *values]))
    assert names <= page.keys() and all(page[name] == line[name] for name in names)
