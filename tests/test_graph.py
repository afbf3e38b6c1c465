"""The recorded step serves chats as the model's own does."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from hyperlora import chat
from hyperlora.adapted import AdaptedModel
from hyperlora.batch import Batch
from hyperlora.chat import ChatEngine
from hyperlora.graph import StepGraph
from tests.conftest import TINY


def recorded(model) -> bool:
    graph = StepGraph(AdaptedModel(model.eval(), ["q_proj", "v_proj"]))
    graph.record()
    return graph._graph is not None


@pytest.fixture
def engine(tiny_model, tiny_base):
    engine = ChatEngine(AdaptedModel(tiny_model, ["q_proj", "v_proj"]), AutoTokenizer.from_pretrained(tiny_base))
    engine._eos = set()
    yield engine
    engine.close()


def test_an_engine_records_after_some_tokens_and_then_uses_it(engine, answers, make_adapter, monkeypatch):
    monkeypatch.setattr(chat, "RECORD_AFTER", 8)
    answers(engine.submit("one two", make_adapter(1), max_new_tokens=12), "one two", make_adapter(1), 12)
    assert engine._graph._graph is not None
    monkeypatch.setattr(engine, "_step", None)  # the model's own step
    answers(engine.submit("a", make_adapter(2), max_new_tokens=150), "a", make_adapter(2), 150)  # the cache grows


def test_rows_with_adapters_and_without(engine, answers, make_adapter):
    """Ranks differ, a row leaves early, and one adapter is that of two rows."""
    engine.call(engine._graph.record)
    adapters = [make_adapter(1), None, make_adapter(2, rank=4), make_adapter(1)]
    adapters += [adapters[0]]
    prompts = ["one two three", "a", "the quick brown fox", "42", "x y"]
    streams = engine.submit_many(prompts[:4], adapters[:4], max_new_tokens=20)
    streams += [engine.submit(prompts[4], adapters[4], max_new_tokens=5)]
    for stream, prompt, adapter, n in zip(streams, prompts, adapters, [20] * 4 + [5], strict=True):
        answers(stream, prompt, adapter, n)


@pytest.mark.parametrize("more", [1, 5, 64, 100])
def test_layers_may_have_more_room_than_others(engine, answers, make_adapter, monkeypatch, more):
    """As where memory ran out while the cache grew."""
    engine.call(engine._graph.record)
    grown = count()

    def pad(side, sizes):  # keys and values of the first layer, of the second, and so on
        return F.pad(side, (*sizes[:3], sizes[3] + more * (next(grown) // 2)))

    monkeypatch.setattr("hyperlora.batch.F", SimpleNamespace(pad=pad))
    answers(engine.submit("one two", make_adapter(1), max_new_tokens=150), "one two", make_adapter(1), 150)


def test_adapters_in_another_dtype_take_the_models_own_step(engine, make_adapter):
    engine.call(engine._graph.record)
    adapter = make_adapter(1)
    weights = {module: (A.bfloat16(), B.bfloat16()) for module, (A, B) in adapter.weights.items()}
    slot = engine.adapted.load(type(adapter)(weights, alpha=16.0, use_rslora=False, lora_dropout=0.0))
    with engine.adapted.use([slot]):
        assert engine._graph.bind(Batch([None])) is None


@pytest.mark.parametrize(
    ("steady", "model", "config"),
    [
        (True, LlamaForCausalLM, LlamaConfig(**TINY)),
        (True, LlamaForCausalLM, LlamaConfig(**TINY, attn_implementation="eager")),
        (False, LlamaForCausalLM, LlamaConfig(**TINY, rope_parameters={"rope_type": "dynamic", "factor": 2.0})),
        (False, MixtralForCausalLM, MixtralConfig(**TINY, num_local_experts=4)),
    ],
    ids=["llama", "eager", "a rotation that changes", "experts that the tokens choose"],
)
def test_only_a_step_that_is_always_the_same_is_recorded(steady, model, config):
    assert recorded(model(config)) == steady


def test_a_graph_whose_logits_are_not_the_models_is_not_used(tiny_model):
    """As of a forward that looks at how many rows there are."""
    tiny_model.lm_head.register_forward_hook(lambda module, args, y: y * (1 if len(y) == 2 else 2))
    assert not recorded(tiny_model)


def test_without_tracing_nothing_is_recorded(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.jit, "trace", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("gone")))
    assert not recorded(tiny_model)
