"""The likelihood of an answer is that of the model with the adapter in its weights."""

import copy

import pytest
import torch
from transformers import AutoTokenizer, MistralForCausalLM

import hyperlora
from hyperlora.adapted import AdaptedModel
from hyperlora.errors import UserError
from hyperlora.likelihood import disagreements, likelihoods
from hyperlora.prompt import format_prompt

CHATS = [("one two three", "abc"), ("a", "the quick brown"), ("42 + 17", "5"), ("x y z", "ab ab")]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def expected(tiny_base):
    """expected(question, answer, adapter) -> the answer's ids and the log-probabilities [tokens, vocabulary]."""
    base, tokenizer = MistralForCausalLM.from_pretrained(tiny_base).eval(), AutoTokenizer.from_pretrained(tiny_base)

    def compute(question: str, answer: str, adapter=None):
        model = copy.deepcopy(base)
        for module in adapter.weights if adapter else ():
            for i, layer in enumerate(model.model.layers):
                getattr(layer.self_attn, module).weight.data += adapter.delta_w(module, i)
        prompt = format_prompt(tokenizer, question)
        ids = tokenizer.apply_chat_template(chat(question, answer), return_dict=False)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        return ids[len(prompt) :], logits.log_softmax(dim=-1)

    return compute


@pytest.mark.parametrize("most", [4096, 60, 1])
def test_each_answer_is_as_likely_as_alone(tiny_model, tiny_base, make_adapter, expected, monkeypatch, most):
    monkeypatch.setattr("hyperlora.likelihood.MAX_TOKENS", most)  # of a pass: all rows, a few, one at a time
    adapters = [make_adapter(1).scaled(4), None, make_adapter(2, rank=3).scaled(4), make_adapter(1).scaled(4)]
    adapted = AdaptedModel(tiny_model, ["q_proj", "v_proj"], max_adapters=3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    found = likelihoods(adapted, tokenizer, [chat(*pair) for pair in CHATS], adapters)
    for (question, answer), adapter, row in zip(CHATS, adapters, found, strict=True):
        ids, log_probs = expected(question, answer, adapter)
        assert row.ids == ids and row.best == log_probs.argmax(dim=-1).tolist()
        own = log_probs.gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(row.log_probs, own, atol=1e-4, rtol=0)
        assert row.loss == pytest.approx(-float(own.mean()), abs=1e-4)
    assert not adapted._slots  # all are free again


def test_where_adapter_and_base_disagree(tiny_base, tiny_hyperlora, make_adapter, expected):
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=tiny_hyperlora)
    adapter = make_adapter(1).scaled(4)
    tokens = disagreements(pipe, "one two", "two one", adapter)
    (_, own), (_, base) = expected("one two", "two one", adapter), expected("one two", "two one")
    assert "".join(token.text for token in tokens) == " two one" and len(tokens) == len(own)
    ids = expected("one two", "two one")[0]
    for i, token in enumerate(tokens):
        assert token.adapted == pytest.approx(float(own[i, ids[i]]), abs=1e-4)
        assert token.base == pytest.approx(float(base[i, ids[i]]), abs=1e-4)
        assert token.instead == pipe.tokenizer.decode([int(base[i].argmax())], skip_special_tokens=True)
    with pytest.raises(UserError, match=r"Prompt and answer are \d+ tokens long, and the model reads 256: shorten"):
        disagreements(pipe, "one two", "a" * 300, adapter)
    pipe.close()
