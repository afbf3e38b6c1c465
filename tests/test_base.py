"""Loading a base model."""

import gc
import json
import pickle
import re
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from hyperlora.base import PATTERNS, context_length, end_tokens, load_base, origin
from hyperlora.errors import UserError
from hyperlora.prompt import TRAINED, encode_answers, format_prompt, use_trained_template

LLAMA, GEMMA = "meta-llama/Llama-3.1-8B-Instruct", "google/gemma-2-2b-it"


@pytest.fixture
def broken(tiny_base, tmp_path):
    """A copy of the base to damage."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def test_a_folder_is_loaded_frozen_and_without_network(tiny_base, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model, tokenizer = load_base(tiny_base)
    assert model.dtype == torch.float32 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert context_length(model) == 256 and tokenizer.chat_template
    assert tokenizer.pad_token == tokenizer.eos_token  # the file names none, as many published ones
    assert load_base(tiny_base, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_base_from_the_hub_says_which_and_at_what_commit(tiny_base, tmp_path, monkeypatch):
    """What an adapter names as its base has to be found on other machines too, not in this one's cache."""
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / ("ab12" * 10)
    shutil.copytree(tiny_base, snapshot)
    monkeypatch.setattr("hyperlora.base.resolve_folder", lambda *_: snapshot)
    assert origin(load_base("owner/tiny")[0]) == ("owner/tiny", "ab12" * 10)
    monkeypatch.undo()
    assert origin(load_base(tiny_base)[0]) == (str(tiny_base), None)


def test_a_base_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        load_base(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_base(tmp_path)


def test_a_model_that_sees_or_hears_too_is_refused(broken):
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vision_config": {"hidden_size": 8}}))
    with pytest.raises(UserError, match="has a vision part; only text models can be adapted"):
        load_base(broken)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load_base(broken)


def put_adapter(folder: Path, **config) -> None:
    """Into a model's folder, as a training that writes its adapter there does."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize("config", [{}, {"base_model_name_or_path": "owner/other"}, {"peft_type": "NONSENSE"}], ids=str)
def test_a_folder_with_an_adapter_too_is_refused(broken, config, monkeypatch):
    """transformers, where PEFT is installed, would load both as one, and a hypernetwork's adapters go on top."""
    put_adapter(broken, **config)
    with pytest.raises(UserError, match=r"holds an adapter too \(adapter_config\.json\).*give a folder that holds"):
        load_base(broken)
    monkeypatch.setattr("hyperlora.base.resolve_folder", lambda *_: broken)
    with pytest.raises(UserError, match="holds an adapter too"):
        load_base("owner/tiny")  # from the Hub
    monkeypatch.undo()
    (broken / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing: .* holds no base model"):
        load_base(broken)  # the adapter alone


def save_templates(folder: Path, how: str, **templates: str) -> None:
    """Named chat templates into the folder, in one of the ways in which models are published."""
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if how == "list":
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    elif how == "dict":
        config["chat_template"] = templates
    else:
        for name, text in templates.items():
            file = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("how", ["list", "dict", "folder"])
def test_of_several_chat_templates_the_default_is_taken(broken, how):
    save_templates(broken, how, rag="{{ raise_exception('no') }}", default="<s>{{ messages[0]['content'] }}=", z="z")
    _, tokenizer = load_base(broken)
    assert tokenizer.chat_template == "<s>{{ messages[0]['content'] }}="
    assert tokenizer.decode(format_prompt(tokenizer, "1+1")) == "<s>1+1="


@pytest.mark.parametrize("how", ["list", "dict", "folder"])
def test_several_chat_templates_without_a_default_are_a_sentence(broken, how, make_config):
    save_templates(broken, how, tool_use="a", rag="b")
    model, tokenizer = load_base(broken)
    with pytest.raises(UserError, match=r"several chat templates \(rag, tool_use\), no default: name one of them"):
        format_prompt(tokenizer, "1+1")
    with pytest.raises(UserError, match="several chat templates"):
        use_trained_template(tokenizer, make_config())
    assert end_tokens(model, tokenizer) == {2}
    use_trained_template(tokenizer, make_config(chat_template="<s>{{ messages[0]['content'] }}="))
    assert tokenizer.decode(format_prompt(tokenizer, "1+1")) == "<s>1+1="


def test_what_is_fetched_of_a_base(tiny_base):
    wanted = ["config.json", "model.safetensors", "chat_template.jinja", "additional_chat_templates/rag.jinja"]
    wanted += ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"]
    wanted += ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["consolidated.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "modeling_x.py"]
    assert list(filter_repo_objects(wanted + others, allow_patterns=PATTERNS)) == wanted


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI = (  # ends in another token where nobody is asked to go on
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
ALPACA = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "eos", "generation", "config", "expected", "learnt"),
    [
        (CHATML, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|endoftext|> <|im_end|>", "<|im_end|>"),
        (CHATML, "<|im_end|>", "<|endoftext|>", None, "<|endoftext|> <|im_end|>", "<|im_end|>"),
        (TRAINED[LLAMA], "<|end_of_text|>", "<|end_of_text|> <|eom_id|>", None, None, "<|eot_id|>"),
        (TRAINED[GEMMA], "<eos>", "<eos>", "<eos>", "<eos> <end_of_turn>", "<end_of_turn>"),
        (PHI, "<|endoftext|>", None, None, "<|endoftext|> <|end|>", "<|end|>"),
        (ALPACA, "</s>", None, "<|endoftext|>", "</s> <|endoftext|>", "</s>"),
        (None, "</s>", "<|im_end|>", None, "</s> <|im_end|>", None),
    ],
)
def test_answers_end_as_the_template_ends_a_turn_and_wherever_else_the_model_says(
    tiny_base, tiny_model, template, eos, generation, config, expected, learnt
):
    expected = expected or "<|end_of_text|> <|eom_id|> <|eot_id|>"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokens = "<|endoftext|> <|im_start|> <|im_end|> <|end_of_text|> <|eom_id|> <|eot_id|> <eos> <end_of_turn> <|end|>"
    tokenizer.add_special_tokens({"additional_special_tokens": tokens.split()})
    tokenizer.eos_token, tokenizer.chat_template = eos, template

    def ids(names: str | None) -> list[int] | None:
        return names and tokenizer.convert_tokens_to_ids(names.split())

    tiny_model.generation_config.eos_token_id, tiny_model.config.eos_token_id = ids(generation), ids(config)
    assert end_tokens(tiny_model, tokenizer) == set(ids(expected))
    if learnt is not None:
        [(_, answer)] = encode_answers(
            tokenizer, [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
        )
        assert [answer[-1]] == ids(learnt) and not set(answer[:-1]) & set(ids(tokens))


def test_damaged_weights(broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged or incomplete"):
        load_base(broken)


def test_a_pickle_is_not_read(broken):
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(UserError, match="is damaged or incomplete"):
        load_base(broken)


def test_weights_of_another_shape_or_too_few_of_them(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(UserError, match=r"does not fit its config\.json: model\.layers\.2"):
        load_base(broken)
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(UserError, match=str(broken)):
        load_base(broken)


def test_missing_tokenizer(broken):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    with pytest.raises(UserError, match="is damaged or incomplete"):
        load_base(broken)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "meta"])
def test_a_device_that_is_not_there(tiny_base, device):
    with pytest.raises(UserError, match=f"The device '{device}' cannot be used here .*; use cpu, or auto"):
        load_base(tiny_base, device=device)
    with pytest.raises(UserError, match=f"The device '{device}' cannot be used here"):
        load_base(tiny_base, device_map={"model": device, "lm_head": "cpu"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.float16])
def test_dtypes_by_name_or_as_torch_has_them(tiny_base, dtype):
    model, _ = load_base(tiny_base, dtype=dtype, device="auto")
    assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))
    assert not any(torch.isnan(parameter).any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "int8"}, "The dtype 'int8' is not known; use float32, bfloat16, float16"),
        ({"dtype": None}, "The dtype 'None' is not known"),
        ({"attention": "flash"}, "The attention 'flash' is not known; use eager, sdpa, flash_attention_2"),
        ({"attention": "kernels-community/flash-attn2"}, "is not known"),  # compiled code from the Hub
        ({"attention": "flash_attention_2"}, "runs on CUDA GPUs only: leave attention out, or use sdpa"),
        ({"attention": "flash_attention_2", "device_map": "auto"}, "computes in bfloat16 or float16"),
        (
            {"attention": "flash_attention_2", "device_map": "auto", "dtype": "bfloat16"},
            "a package that is not here: pip install flash-attn",
        ),
        ({"device_map": "fastest"}, "The device_map 'fastest' is not known; use auto"),
        ({"device_map": {}}, "A device_map is"),
        ({"device_map": {"model.layers": "cpu", "lm_head": "disk"}}, "The device_map does not fit the base model in"),
        ({"quantize": "2bit", "dtype": "bfloat16"}, "quantize is '2bit', but must be 4bit, 8bit or None"),
        ({"quantize": "4bit"}, "A base model in 4bit computes in bfloat16 or float16: ask for one of them as dtype"),
    ],
    ids=str,
)
def test_options_that_are_not_possible(tiny_base, options, sentence):
    with pytest.raises(UserError, match=sentence):
        load_base(tiny_base, **options)


def test_few_bits_without_their_package_or_where_they_cannot_be(tiny_base, monkeypatch):
    monkeypatch.setattr("hyperlora.base.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match="8bit needs a package that is not here: pip install bitsandbytes"):
        load_base(tiny_base, dtype="bfloat16", quantize="8bit")
    monkeypatch.setattr("hyperlora.base.is_bitsandbytes_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cuda"}))
    with pytest.raises(UserError, match="bitsandbytes does not support cpu here"):
        load_base(tiny_base, dtype="bfloat16", quantize="4bit")
    for device_map in ({"": "disk"}, {"model": "cpu", "lm_head": "disk"}):
        with pytest.raises(UserError, match="4bit cannot be offloaded"):
            load_base(tiny_base, dtype="bfloat16", quantize="4bit", device_map=device_map)


def test_eight_bits_are_quiet(tiny_base, caplog):
    pytest.importorskip("bitsandbytes")
    model, _ = load_base(tiny_base, dtype="bfloat16", quantize="8bit")
    model(torch.zeros(1, 4, dtype=torch.long))
    assert not caplog.records


def test_the_config_does_not_choose_the_attention(broken):
    """A name with a slash there would be compiled code from the Hub."""
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "eager"}))
    assert load_base(broken)[0].config._attn_implementation == "sdpa"
    assert load_base(broken, attention="eager")[0].config._attn_implementation == "eager"


def test_too_little_memory_is_not_a_damaged_file(tiny_base, monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB.\nMore.")

    monkeypatch.setattr("hyperlora.base.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(UserError, match=r"does not fit into the memory \(CUDA out of memory.*\): use fewer bits"):
        load_base(tiny_base)


def peak_memory() -> int:
    """The most bytes that this process has held since the last `forget_peak`, files that it maps included."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_are_never_held_twice(tiny_base, tmp_path, dtype):
    """Stored in bfloat16; in float32, the half that the file is comes on top while it is read."""
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = MistralConfig.from_pretrained(folder, intermediate_size=400_000)
    model = MistralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    del model
    gc.collect()
    forget_peak()
    before = peak_memory()
    model, _ = load_base(folder, dtype=dtype)
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long))  # what is mapped is read at its first use
    assert 0.9 * weights < peak_memory() - before < 1.7 * weights
