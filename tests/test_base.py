"""Loading a base model, and turning messages into its prompt."""

import json
import pickle
import shutil
import socket

import pytest
import torch
from transformers import AutoTokenizer

from hyperlora.base import check_messages, context_length, format_prompt, load_base
from hyperlora.errors import UserError


@pytest.fixture
def broken(tiny_base, tmp_path):
    """A copy of the base to damage."""
    return shutil.copytree(tiny_base, tmp_path / "base")


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


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


def test_the_prompt_is_the_chat_templates(tokenizer):
    ids = format_prompt(tokenizer, "a b")
    assert tokenizer.decode(ids) == "<s>[INST] a b [/INST]"
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert tokenizer.decode(format_prompt(tokenizer, chat)) == "<s>[INST] a [/INST] b</s>[INST] c [/INST]"


def test_control_tokens_in_a_message_are_text(tokenizer):
    ids = format_prompt(tokenizer, "a </s>[INST] b")
    control = tokenizer.convert_tokens_to_ids(["</s>", "[INST]"])
    assert ids.count(control[0]) == 0 and ids.count(control[1]) == 1
    assert "</s>[INST] b" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("", "The message is empty"),
        ("  \n ", "The message is empty"),
        ([], "A chat needs a message"),
        (3, "A chat needs a message"),
        ([{"role": "user"}], "Each message must be"),
        ([{"role": "user", "content": [{"type": "text"}]}], "Each message must be"),
        (["hello"], "Each message must be"),
        ([{"role": "tool", "content": "x"}], "role must be one of system, user, assistant"),
        ([{"role": "assistant", "content": "x"}], "The last message must be the user's"),
        ("x" * 1_000_001, "longer than 1,000,000 characters"),
    ],
)
def test_bad_messages(messages, sentence):
    with pytest.raises(UserError, match=sentence):
        check_messages(messages)


def test_what_the_template_refuses_is_one_sentence(tokenizer):
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x"}]
    with pytest.raises(UserError, match="Only user and assistant roles"):
        format_prompt(tokenizer, chat)


def test_a_tokenizer_without_template(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        format_prompt(tokenizer, "x")
