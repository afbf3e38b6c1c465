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
from transformers import MistralConfig, MistralForCausalLM

from hyperlora.base import context_length, load_base, origin
from hyperlora.errors import UserError


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
