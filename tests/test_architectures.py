"""Tiny random models of the architectures that we say we support: the same forward, chat and gradient over each."""

import copy

import peft
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.chat import ChatEngine
from hyperlora.errors import UserError
from hyperlora.graph import STEADY
from hyperlora.lora import Adapter
from hyperlora.prompt import format_prompt
from tests.conftest import TINY

WINDOW = 6  # tokens that a sliding layer sees
SIZES = TINY | {"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
HEADS = {"head_dim": 8}
SPLIT = ["q_proj", "v_proj", "down_proj"]
FUSED = ["qkv_proj", "gate_up_proj", "down_proj"]
KINDS = {
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, **HEADS, sliding_window=WINDOW), SPLIT),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, **HEADS), SPLIT),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES), SPLIT),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, **HEADS), SPLIT),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, **HEADS, sliding_window=WINDOW), SPLIT),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, **HEADS, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]),
        SPLIT,
    ),
    "phi3": (Phi3ForCausalLM, Phi3Config(**SIZES), FUSED),
}
SLIDING = ["mistral", "gemma2", "gemma3"]
PROMPTS = [
    "one two three",
    "a",
    "the quick brown fox jumps over the lazy dog",
    "42 + 17",
]  # most are longer than WINDOW


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tiny_base, tmp_path_factory):
    """A random model of the kind as it is on the Hub, with the tiny base's tokenizer."""
    cls, config, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(copy.deepcopy(config))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.15)  # enough for tokens to see each other
    folder = tmp_path_factory.mktemp(kind)
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(kind, folder, tmp_path_factory) -> list[tuple[Adapter, str]]:
    """Two adapters of different ranks, and the PEFT folders that they are saved to."""
    adapted = AdaptedModel(load_base(folder)[0], KINDS[kind][2])
    made = []
    for rank in (4, 6):
        random = torch.Generator().manual_seed(rank)
        weights = {
            module: (
                torch.randn(2, rank, d_in, generator=random) / 6,
                torch.randn(2, d_out, rank, generator=random) / 6,
            )
            for module, (d_in, d_out) in adapted.target_modules.items()
        }
        made.append((Adapter(weights, alpha=8.0, use_rslora=True, lora_dropout=0.0), tmp_path_factory.mktemp("peft")))
        made[-1][0].save_pretrained(made[-1][1])
    return made


def with_peft(folder, adapter_folder, **options):
    """The base under PEFT's own forward."""
    model, _ = load_base(folder)
    return peft.PeftModel.from_pretrained(model, adapter_folder, **options).eval()


def test_rows_with_adapters_and_without_agree_with_peft(kind, folder, adapters):
    """Left-padded prompts that are longer than the window."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (4, 20), generator=random)
    mask = (torch.arange(20) >= torch.tensor([0, 3, 11, 0])[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    model, _ = load_base(folder)
    adapted = AdaptedModel(model, KINDS[kind][2])
    slots = [adapted.load(adapter) for adapter, _ in adapters]
    with torch.no_grad():
        base = model(**inputs).logits
        expected = [with_peft(folder, path)(**inputs).logits for _, path in adapters]
        with adapted.use([slots[0], None, slots[1], slots[0]]):
            actual = model(**inputs).logits
        with adapted.use([slots[1]] * 4):
            shared = model(**inputs).logits
    seen = mask.bool()
    for row, wanted in enumerate([expected[0], base, expected[1], expected[0]]):
        torch.testing.assert_close(actual[row][seen[row]], wanted[row][seen[row]], rtol=0, atol=1e-5)
    torch.testing.assert_close(shared[seen], expected[1][seen], rtol=0, atol=1e-5)
    assert (expected[0] - base)[seen].abs().max() > 0.01 < (expected[0] - expected[1])[seen].abs().max()


def test_gradients_are_pefts(kind, folder, adapters):
    adapter, path = adapters[0]
    ids = torch.randint(5, 100, (3, 12), generator=torch.Generator().manual_seed(2))
    reference = with_peft(folder, path, is_trainable=True)
    reference(ids, labels=ids).loss.backward()
    expected = {
        (module, side): torch.stack(
            [p.grad for name, p in reference.named_parameters() if f"{module}.lora_{side}" in name]
        )
        for module in adapter.weights
        for side in "AB"
    }
    adapted = AdaptedModel(load_base(folder)[0], KINDS[kind][2])
    factors = {m: tuple(f[None].clone().requires_grad_() for f in pair) for m, pair in adapter.weights.items()}
    with adapted.use_factors(factors, torch.zeros(3, dtype=torch.long), adapter.scale):
        adapted.model(ids, labels=ids).loss.backward()
    for module, pair in factors.items():
        for side, factor in zip("AB", pair, strict=True):
            assert factor.grad.any()
            torch.testing.assert_close(factor.grad[0], expected[module, side], rtol=1e-4, atol=1e-6)


def answer(model, tokenizer, prompt: str, n: int) -> str:
    """What `generate` answers to one prompt alone."""
    ids = torch.tensor([format_prompt(tokenizer, prompt)])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, eos_token_id=-1, pad_token_id=0
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("recorded", [False, True], ids=["model", "graph"])
def test_chats_that_join_each_other_are_what_peft_gives(kind, folder, adapters, recorded, assert_greedy, read_ids):
    """Prompts on both sides of the window, rows that join and leave: each row's cache is padded again and again."""
    model, tokenizer = load_base(folder)
    tuned = [with_peft(folder, path) for _, path in adapters]
    lengths, chosen = [30, 9, 24, 14], [0, None, 1, None]
    engine, streams = ChatEngine(AdaptedModel(model, KINDS[kind][2]), tokenizer), []
    engine._eos = set()
    if recorded:
        engine.call(engine._graph.record)
        assert (engine._graph._graph is not None) == (kind in STEADY and kind not in SLIDING)
    try:
        for prompt, i, n in zip(PROMPTS, chosen, lengths, strict=True):
            streams.append(engine.submit(prompt, None if i is None else adapters[i][0], max_new_tokens=n))
            while streams[-1]._queue.empty():  # it runs before the next one comes
                engine.call(lambda: None)
        answers = [read_ids(stream) for stream in streams]
    finally:
        engine.close()
    for prompt, i, n, ids in zip(PROMPTS, chosen, lengths, answers, strict=True):
        assert len(ids) == n
        assert_greedy(model if i is None else tuned[i], format_prompt(tokenizer, prompt), ids)


@pytest.mark.parametrize("kind", SLIDING, scope="module")
def test_the_window_matters_here(kind, folder):
    """Otherwise the test above would say nothing about it."""
    model, tokenizer = load_base(folder)
    everything, _ = load_base(folder)
    for module in everything.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = None
    everything.config.sliding_window = 256
    assert answer(model, tokenizer, PROMPTS[2], 24) != answer(everything, tokenizer, PROMPTS[2], 24)


def test_a_fused_linear_is_named_and_so_is_what_to_target_instead():
    model = Phi3ForCausalLM(Phi3Config(**SIZES))
    with pytest.raises(UserError, match=r"no q_proj of its own.*fuse q_proj, k_proj, v_proj.*Target qkv_proj instead"):
        AdaptedModel(model, ["q_proj", "v_proj"])
    with pytest.raises(UserError, match="Target gate_up_proj instead"):
        AdaptedModel(model, ["down_proj", "up_proj"])
    assert AdaptedModel(model, ["qkv_proj"]).target_modules == {"qkv_proj": (32, 64)}
