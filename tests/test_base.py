"""Loading a base model."""

import json
import pickle
import shutil
import socket

import pytest
import torch

from hyperlora.base import context_length, load_base
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
    assert load_base(tiny_base, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_base_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        load_base(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_base(tmp_path)


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


def test_a_device_that_is_not_there(tiny_base):
    with pytest.raises(UserError, match="The device 'tpu9' cannot be used here"):
        load_base(tiny_base, device="tpu9")
