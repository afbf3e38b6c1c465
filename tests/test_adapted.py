from contextlib import contextmanager

import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.utils.checkpoint import CheckpointError
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.batch import Batch, merge, select
from hyperlora.errors import UserError
from hyperlora.lora import Adapter

TARGETS = {"q_proj": (64, 64), "v_proj": (64, 32)}
IDS = torch.randint(5, 100, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapted(tiny_model) -> AdaptedModel:
    return AdaptedModel(tiny_model, TARGETS)


@pytest.fixture
def peft_logits(tiny_base, tmp_path):
    """peft_logits(adapter, ids): what PEFT's own forward gives with the adapter as we save it."""

    def logits(adapter, ids):
        adapter.save_pretrained(tmp_path / "peft")
        base = MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        with torch.no_grad():
            return peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()(ids).logits

    return logits


def logits(adapted: AdaptedModel, slots=None, ids=IDS):
    with torch.no_grad():
        if slots is None:
            return adapted.model(ids).logits
        with adapted.use(slots):
            return adapted.model(ids).logits


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def random_factors(n: int, r: int = 8, seed: int = 0) -> dict:
    random = torch.Generator().manual_seed(seed)
    return {
        module: (
            (torch.randn(n, 2, r, d_in, generator=random) / 8).requires_grad_(),
            (torch.randn(n, 2, d_out, r, generator=random) / 8).requires_grad_(),
        )
        for module, (d_in, d_out) in TARGETS.items()
    }


# Against PEFT's own forward


@pytest.mark.parametrize("fields", [{}, {"use_rslora": False, "alpha": 5.0}, {"rank": 3}])
def test_one_adapter_for_all_rows(adapted, make_adapter, peft_logits, fields):
    adapter = make_adapter(0, **fields)
    expected = peft_logits(adapter, IDS)
    assert (expected - logits(adapted)).abs().max() > 0.05  # the adapter does something
    assert_close(logits(adapted, [adapted.load(adapter)] * 4), expected)


def test_each_row_has_its_own_adapter_of_any_rank_or_none(adapted, make_adapter, peft_logits):
    a, b, c = make_adapter(1), make_adapter(2, rank=3, use_rslora=False), make_adapter(3, rank=16)
    slots = [adapted.load(adapter) for adapter in (a, b, c)]
    actual = logits(adapted, [slots[1], None, slots[0], slots[2]])
    assert_close(actual[0:1], peft_logits(b, IDS[0:1]))
    assert torch.equal(actual[1], logits(adapted)[1])
    assert_close(actual[2:3], peft_logits(a, IDS[2:3]))
    assert_close(actual[3:4], peft_logits(c, IDS[3:4]))
    every_row = logits(adapted, [slots[1], slots[0], slots[0], slots[2]])
    assert_close(every_row[[0, 2, 3]], actual[[0, 2, 3]])


def test_each_row_has_the_strength_of_its_adapter(adapted, make_adapter, peft_logits):
    adapter = make_adapter(1)
    actual = logits(adapted, [adapted.load(adapter.scaled(strength)) for strength in (0.5, 1.5, 0.0, -0.5)])
    assert_close(actual[0:1], peft_logits(adapter.scaled(0.5), IDS[0:1]))
    assert_close(actual[1:2], peft_logits(adapter.scaled(1.5), IDS[1:2]))
    assert_close(actual[2], logits(adapted)[2])
    assert_close(actual[3:4], peft_logits(adapter.scaled(-0.5), IDS[3:4]))
    assert_close(logits(adapted, [adapted.load(adapter.scaled(0.25))] * 4), peft_logits(adapter.scaled(0.25), IDS))


def test_an_adapter_of_some_of_the_targets(adapted, make_adapter, peft_logits):
    adapter = make_adapter(1)
    del adapter.weights["q_proj"]
    assert_close(logits(adapted, [adapted.load(adapter)] * 4), peft_logits(adapter, IDS))


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_dtypes_mix_as_in_peft(tiny_base, tmp_path, make_adapter, base_dtype, adapter_dtype):
    adapter = make_adapter(1)
    adapter.save_pretrained(tmp_path)
    base = MistralForCausalLM.from_pretrained(tiny_base, dtype=base_dtype)
    tuned = peft.PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter_dtype)
    adapter.weights = {m: (A.to(adapter_dtype), B.to(adapter_dtype)) for m, (A, B) in adapter.weights.items()}
    ours = AdaptedModel(MistralForCausalLM.from_pretrained(tiny_base, dtype=base_dtype).eval(), TARGETS)
    slot = ours.load(adapter)
    with torch.no_grad():
        expected = tuned(IDS).logits
    actual, some_rows = logits(ours, [slot] * 4), logits(ours, [slot, None, slot, slot])
    assert actual.dtype == some_rows.dtype == base_dtype
    exact = {"rtol": 0, "atol": 1e-5}
    tolerance = exact if {base_dtype, adapter_dtype} == {torch.float32} else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(some_rows[[0, 2, 3]], expected[[0, 2, 3]], **tolerance)


def test_decoding_with_a_cache(adapted, make_adapter, peft_logits):
    a, b = make_adapter(1), make_adapter(2)
    with torch.no_grad(), adapted.use([adapted.load(a), None, adapted.load(b), None]):
        cache = adapted.model(IDS[:, :5], use_cache=True).past_key_values
        steps = [adapted.model(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(5, 9)]
    actual = torch.cat(steps, dim=1)
    assert_close(actual[0:1], peft_logits(a, IDS[0:1])[:, 5:])
    assert_close(actual[1], logits(adapted)[1, 5:])
    assert_close(actual[2:3], peft_logits(b, IDS[2:3])[:, 5:])


# Slots


def test_swapping_back_and_forth_is_exact(adapted, make_adapter):
    a, b = adapted.load(make_adapter(1)), adapted.load(make_adapter(2))
    base, with_a, with_b = logits(adapted), logits(adapted, [a] * 4), logits(adapted, [b] * 4)
    assert not torch.equal(with_a, with_b)
    assert torch.equal(logits(adapted, [None] * 4), base)
    assert torch.equal(logits(adapted, [a] * 4), with_a)
    assert torch.equal(logits(adapted), base)


def test_the_least_recently_used_adapter_makes_room(tiny_model, make_adapter):
    adapted = AdaptedModel(tiny_model, TARGETS, max_adapters=2)
    a, b = adapted.load(make_adapter(1)), adapted.load(make_adapter(2))
    with_a = logits(adapted, [a] * 4)
    c = adapted.load(make_adapter(3))  # a was used after b
    assert torch.equal(logits(adapted, [a] * 4), with_a)
    logits(adapted, [c] * 4)
    with pytest.raises(UserError, match="empty"):
        logits(adapted, [b] * 4)


def test_an_emptied_slot_is_never_another_adapters(adapted, make_adapter):
    slot = adapted.load(make_adapter(1))
    adapted.unload(slot)
    assert adapted.load(make_adapter(2)) != slot
    with pytest.raises(UserError, match="empty"):
        logits(adapted, [slot] * 4)


def test_adapters_in_use_are_not_evicted(tiny_model, make_adapter):
    adapted = AdaptedModel(tiny_model, TARGETS, max_adapters=2)
    a, b = adapted.load(make_adapter(1)), adapted.load(make_adapter(2))
    with adapted.use([a, b]), pytest.raises(UserError, match="in use"):
        adapted.load(make_adapter(3))
    with adapted.use([a, a]):
        adapted.load(make_adapter(3))  # in b's place
    logits(adapted, [a] * 4)


@pytest.mark.parametrize("pinned", [[0], [1, 2], [0, 2]], ids=str)
def test_pinned_adapters_stay_until_they_are_unloaded(tiny_model, make_adapter, pinned):
    adapted = AdaptedModel(tiny_model, TARGETS, max_adapters=3)
    slots = [adapted.load(make_adapter(i), pinned=i in pinned) for i in range(3)]
    expected = [logits(adapted, [slot] * 4) for slot in slots]
    for i in range(6):
        adapted.load(make_adapter(10 + i))
    for i, slot in enumerate(slots):
        if i in pinned:
            assert torch.equal(logits(adapted, [slot] * 4), expected[i])
        else:
            with pytest.raises(UserError, match="empty"):
                logits(adapted, [slot] * 4)
    for i in range(3 - len(pinned)):
        adapted.load(make_adapter(20 + i), pinned=True)
    with pytest.raises(UserError, match="All 3 adapter slots are in use"):
        adapted.load(make_adapter(30))
    adapted.unload(slots[pinned[0]])
    adapted.load(make_adapter(30))


def test_another_number_of_rows_is_an_error(adapted, make_adapter):
    a, b = adapted.load(make_adapter(1)), adapted.load(make_adapter(2))
    for slots in ([a, b], [a, a], [a], [a, None]):  # one row would broadcast
        with pytest.raises(UserError, match="4 rows"):
            logits(adapted, slots)
    with adapted.use([a]), pytest.raises(UserError, match="rows"):
        adapted.model.generate(IDS[:1], num_beams=2, max_new_tokens=2)


def test_an_error_inside_leaves_the_base_clean(adapted, make_adapter):
    base = logits(adapted)
    slot = adapted.load(make_adapter(1))
    with pytest.raises(ZeroDivisionError), adapted.use([slot] * 4):
        raise ZeroDivisionError
    assert torch.equal(logits(adapted), base)


def test_nesting_is_an_error(adapted, make_adapter):
    slot = adapted.load(make_adapter(1))
    with adapted.use([slot]), pytest.raises(RuntimeError, match="nested"), adapted.use([slot]):
        pass


def test_an_adapter_of_another_base_is_refused(adapted, make_adapter):
    def changed(change):
        adapter = make_adapter(1)
        adapter.weights = {m: change(A, B) for m, (A, B) in adapter.weights.items()}
        return adapter

    extra = make_adapter(1)
    extra.weights["k_proj"] = extra.weights["v_proj"]
    for adapter, named in [
        (changed(lambda A, B: (A[:1], B[:1])), "1 layers"),
        (changed(lambda A, B: (A[..., :48], B)), "q_proj is 48 -> 64"),
        (changed(lambda A, B: (A, B[:, :16])), "64 -> 16"),
        (extra, "k_proj"),
    ]:
        with pytest.raises(UserError, match=named):
            adapted.load(adapter)


# Wrapping


def test_remove_leaves_the_model_as_it_came(tiny_model, make_adapter):
    before, keys = tiny_model(IDS).logits, list(tiny_model.state_dict())
    adapted = AdaptedModel(tiny_model, TARGETS)
    assert list(tiny_model.state_dict()) == keys
    slot = adapted.load(make_adapter(1))
    assert not torch.equal(logits(adapted, [slot] * 4), before)
    adapted.remove()
    assert torch.equal(tiny_model(IDS).logits, before)
    assert not any(part._forward_hooks for part in tiny_model.modules())


def test_wrapping_twice_adds_an_adapter_once(adapted, make_adapter):
    adapter = make_adapter(1)
    expected = logits(adapted, [adapted.load(adapter)] * 4)
    again = AdaptedModel(adapted.model, ["q_proj", "v_proj"])
    assert again.target_modules == TARGETS
    assert torch.equal(logits(again, [again.load(adapter)] * 4), expected)


def test_the_base_is_frozen(adapted):
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())


def test_targets_that_are_missing_fused_or_of_another_size_are_named(tiny_model):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    phi = Phi3ForCausalLM(Phi3Config(**small, num_key_value_heads=2, intermediate_size=32, pad_token_id=0))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    for model, targets, named in [
        (tiny_model, ["query"], "no query"),
        (tiny_model, {"q_proj": (64, 48)}, "q_proj in layer 0"),
        (phi, ["q_proj"], "qkv_proj"),
        (gpt2, ["c_attn"], "Conv1D"),
    ]:
        with pytest.raises(UserError, match=named):
            AdaptedModel(model, targets)
    del tiny_model.model.layers[0].self_attn.v_proj
    with pytest.raises(UserError, match="Not every layer"):
        AdaptedModel(tiny_model, TARGETS)


def test_experts_are_not_taken_for_layers(tiny_model):
    tiny_model.model.layers[1].mlp.experts = nn.ModuleList([nn.Linear(4, 4)])
    tiny_model.model.layers[1].mlp.experts[0].q_proj = nn.Linear(4, 4)
    assert AdaptedModel(tiny_model, ["q_proj"]).target_modules == {"q_proj": (64, 64)}


def test_the_layers_order_is_that_of_numbers():
    """As text, layer 10 would come before layer 2."""
    shape = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    model = MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=1, num_hidden_layers=12)).eval()
    adapted = AdaptedModel(model, ["down_proj"])
    A, B = torch.zeros(12, 4, 48), torch.zeros(12, 32, 4)
    A[10], B[10] = torch.randn(4, 48), torch.randn(32, 4)
    adapter = Adapter({"down_proj": (A, B)}, alpha=4.0, use_rslora=False)
    actual = logits(adapted, [adapted.load(adapter)] * 4)
    model.model.layers[10].mlp.down_proj.weight += adapter.delta_w("down_proj", 10)
    assert_close(actual, logits(adapted))


# Where the base's weights are


LAYERWISE = {  # half of the model waits on the disk
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(params=["cpu_offload", "disk_offload", "disk", "layerwise"])
def offloaded(request, tiny_model, tiny_base, tmp_path):
    """The tiny base with its weights on `meta` between two forwards; hooks bring them in for each."""
    if request.param == "cpu_offload":
        return cpu_offload(tiny_model)
    if request.param == "disk_offload":
        return disk_offload(tiny_model, tmp_path / "offload")
    return load_base(tiny_base, device_map={"": "disk"} if request.param == "disk" else LAYERWISE)[0]


def test_weights_that_are_elsewhere_between_two_forwards(adapted, offloaded, make_adapter):
    elsewhere = AdaptedModel(offloaded, TARGETS)
    assert {str(linear.weight.device) for _, layer, linear in elsewhere.linears() if layer == 1} == {"meta"}
    adapters = [make_adapter(1), make_adapter(2)]
    a, b = (adapted.load(adapter) for adapter in adapters)
    x, y = (elsewhere.load(adapter) for adapter in adapters)
    # Not the same bits: what comes from a file lies elsewhere in memory, where a kernel may add in another order.
    for here, there in [([a, None, b, a], [x, None, y, x]), ([b] * 4, [y] * 4), ([None] * 4, [None] * 4)]:
        assert_close(logits(elsewhere, there), logits(adapted, here))
    assert_close(logits(elsewhere), logits(adapted))
    assert {str(linear.weight.device) for _, layer, linear in elsewhere.linears() if layer == 1} == {"meta"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_through_weights_that_are_elsewhere(adapted, offloaded, checkpointing):
    gradients = []
    for each in (adapted, AdaptedModel(offloaded, TARGETS)):
        each.model.train()
        if checkpointing:
            each.model.gradient_checkpointing_enable({"use_reentrant": False})
        factors = random_factors(2)
        with each.use_factors(factors, torch.tensor([0, 1, -1, 0]), 1.0):
            each.model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([f.grad for pair in factors.values() for f in pair])
    for mine, plain in zip(gradients[1], gradients[0], strict=True):
        assert mine.any()
        torch.testing.assert_close(mine, plain)


def test_layers_on_two_devices(tiny_model, make_adapter):
    """The second is `meta`: it has no values, but its operations refuse tensors that are elsewhere."""
    second = [tiny_model.model.layers[1], tiny_model.model.norm, tiny_model.lm_head]
    for part in second:
        add_hook_to_module(part.to("meta"), AlignDevicesHook("meta", skip_keys="past_key_values"))
    adapted = AdaptedModel(tiny_model, TARGETS)
    a, b = adapted.load(make_adapter(1)), adapted.load(make_adapter(2))

    def prefill(slots: list[int | None], length: int) -> Batch:
        batch = Batch(list(slots), pad=torch.zeros(len(slots), dtype=torch.long), length=length)
        with torch.no_grad(), adapted.use(slots):
            adapted.model(IDS[: len(slots), :length], past_key_values=batch.cache, use_cache=True)
        return batch

    batch = merge(select(prefill([a, None, b, a], 4), [0, 1, 2]), prefill([b], 6))
    with torch.no_grad(), adapted.use(batch.rows):
        out = adapted.model(IDS[:, :1], past_key_values=batch.cache, use_cache=True).logits
    assert out.device.type == "meta" and out.shape == (4, 1, 100)
    assert [layer.keys.device.type for layer in batch.cache.layers] == ["cpu", "meta"]
    factors = random_factors(2)
    with adapted.use_factors(factors, torch.tensor([0, 1, -1, 0]), 1.0):
        adapted.model(IDS).logits.sum()


def test_a_linear_on_another_device_than_its_input(tiny_model, make_adapter):
    q_proj = tiny_model.model.layers[1].self_attn.q_proj.to("meta")
    add_hook_to_module(q_proj, AlignDevicesHook("meta"))
    adapted = AdaptedModel(tiny_model, TARGETS)
    with torch.no_grad(), adapted.use([adapted.load(make_adapter(1)), None]):
        assert q_proj(torch.randn(2, 5, 64)).device.type == "meta"


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_few_bits_agree_with_peft_over_the_same_base(tiny_base, tmp_path, make_adapter, bits):
    pytest.importorskip("bitsandbytes")
    adapter = make_adapter(1)
    adapter.save_pretrained(tmp_path)
    model, _ = load_base(tiny_base, dtype=torch.bfloat16, quantize=bits)
    assert model.model.layers[0].self_attn.q_proj.weight.dtype in (torch.uint8, torch.int8)
    adapted = AdaptedModel(model, TARGETS)
    slot = adapted.load(adapter)
    base, ours, mixed = logits(adapted), logits(adapted, [slot] * 4), logits(adapted, [slot, None, slot, None])
    other, _ = load_base(tiny_base, dtype=torch.bfloat16, quantize=bits)
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(other, tmp_path).eval()(IDS).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.02)
    torch.testing.assert_close(mixed[::2], expected[::2], rtol=0, atol=0.02)
    torch.testing.assert_close(mixed[1::2], base[1::2], rtol=0, atol=0.02)
    assert (expected - base).abs().max() > 0.05


# Training


class PlainLoRA(nn.Module):
    """A linear whose rows add their own ΔW as a full matrix: the slowest way to say it."""

    def __init__(self, linear: nn.Linear, delta_w: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.delta_w = linear, delta_w  # [b, d_out, d_in]

    def forward(self, x):
        return self.linear(x) + torch.stack([x[i] @ self.delta_w[i].T for i in range(len(x))])


@contextmanager
def plain_lora(model, factors, rows, scale):
    originals = []
    for layer, block in enumerate(model.model.layers):
        for name, (A, B) in factors.items():
            zero = torch.zeros(B.shape[2], A.shape[3])
            deltas = [scale * B[i, layer] @ A[i, layer] if i >= 0 else zero for i in rows]
            originals.append((block.self_attn, name, getattr(block.self_attn, name)))
            setattr(block.self_attn, name, PlainLoRA(originals[-1][2], torch.stack(deltas)))
    yield
    for parent, name, linear in originals:
        setattr(parent, name, linear)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        [0, 1, 2, 3],  # each row its own, in order
        [2, 0, 2, 1],  # shared and mixed, one of the four unused
        [3, -1, 0, -1],  # some rows without
        [1, 1, 1, 1],  # all the same
        [-1, 2, -1, 2],
    ],
)
def test_gradients_equal_those_of_full_matrices(adapted, tiny_base, rows, checkpointing):
    reference = MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).train()
    expected, ours = random_factors(4), random_factors(4)
    with plain_lora(reference.requires_grad_(False), expected, rows, 0.7):
        loss = reference(IDS, labels=IDS).loss
        loss.backward()
    adapted.model.train()
    if checkpointing:
        adapted.model.gradient_checkpointing_enable({"use_reentrant": False})
    with adapted.use_factors(ours, torch.tensor(rows), 0.7):
        our_loss = adapted.model(IDS, labels=IDS, use_cache=False).loss
        our_loss.backward()  # inside, as checkpointing recomputes the forward
    torch.testing.assert_close(our_loss, loss)
    for module in TARGETS:
        for mine, plain in zip(ours[module], expected[module], strict=True):
            assert mine.grad.any()
            torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_backward_outside_is_an_error_with_checkpointing_and_not_a_wrong_gradient(adapted):
    adapted.model.train()
    adapted.model.gradient_checkpointing_enable({"use_reentrant": False})
    with adapted.use_factors(random_factors(4), torch.arange(4), 1.0):
        loss = adapted.model(IDS, labels=IDS, use_cache=False).loss
    with pytest.raises(CheckpointError):
        loss.backward()


def test_factors_give_what_the_same_adapters_give_in_slots(adapted, make_adapter):
    adapters = [make_adapter(1), make_adapter(2)]
    factors = {m: tuple(torch.stack([a.weights[m][i] for a in adapters]) for i in (0, 1)) for m in TARGETS}
    a, b = (adapted.load(adapter) for adapter in adapters)
    with torch.no_grad(), adapted.use_factors(factors, torch.tensor([1, 0, -1, 1]), adapters[0].scale):
        actual = adapted.model(IDS).logits
    assert_close(actual, logits(adapted, [b, a, None, b]))


def test_rows_without_an_adapter_only(adapted):
    base = logits(adapted)
    with adapted.use_factors(random_factors(2), torch.full((4,), -1), 1.0):
        assert torch.equal(adapted.model(IDS).logits, base)


def test_training_under_bf16_autocast(adapted):
    gradients = []
    for enabled in (False, True):
        factors = random_factors(2)
        rows = torch.tensor([0, 1, -1, 0])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), adapted.use_factors(factors, rows, 1.0):
            adapted.model(IDS, labels=IDS).loss.backward()
        gradients.append(torch.cat([f.grad.flatten() for pair in factors.values() for f in pair]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_dropout_on_the_adapters_input_in_training_only(adapted):
    factors, rows = random_factors(1), torch.zeros(4, dtype=torch.long)
    adapted.lora_dropout = 0.5
    with torch.no_grad(), adapted.use_factors(factors, rows, 1.0):
        plain = adapted.model(IDS).logits
        assert torch.equal(adapted.model(IDS).logits, plain)
        adapted.model.train()
        assert not torch.equal(adapted.model(IDS).logits, plain)
    with torch.no_grad():
        adapted.model.eval()
        base = adapted.model(IDS).logits
        adapted.model.train()
        assert torch.equal(adapted.model(IDS).logits, base)  # the base's own path has no dropout


def test_factors_that_do_not_fit_are_refused(adapted):
    factors = random_factors(2)
    with pytest.raises(UserError, match="-1 to 1"), adapted.use_factors(factors, torch.tensor([0, 2]), 1.0):
        pass
    q, (A, B) = factors["q_proj"], factors["v_proj"]
    for wrong in (
        {"q_proj": q},
        {"q_proj": q, "v_proj": (A[:1], B[:1])},
        {"q_proj": q, "v_proj": (A[:, :1], B)},
        {"q_proj": q, "v_proj": (A, B[..., :4])},
    ):
        with pytest.raises(UserError, match="v_proj"), adapted.use_factors(wrong, torch.tensor([0, 1]), 1.0):
            pass
