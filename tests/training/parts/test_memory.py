"""The memory of training against real allocations, and its FLOPs against those that PyTorch counts."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from hyperlora.adapted import AdaptedModel
from hyperlora.config import HyperLoRAConfig
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.memory import SHAPES, BaseShape, HyperShape
from training.parts import memory
from training.parts.library import pack
from training.parts.loss import mean_loss
from training.recon import ReconConfig, ReconModel, build
from training.sft import SFTModel

TARGETS = ("q_proj", "v_proj")
# Large enough that what grows with the tokens is nearly all of it.
SMALL = BaseShape(layers=4, hidden=256, intermediate=704, heads=8, kv_heads=2, head_dim=32, vocab=512)
ROWS, TOKENS, ANSWERS = 4, 128, 16


def test_flops_are_those_counted_by_pytorch():
    """Forward and backward through a frozen base; and the known figures for Mistral-7B."""
    from torch.utils.flop_counter import FlopCounterMode

    model, adapted = small()
    ids, labels = batch()
    shape = HyperShape(SMALL)
    factors = {m: (a.requires_grad_(), b.requires_grad_()) for m, (a, b) in random_factors(shape, ROWS).items()}
    with FlopCounterMode(display=False) as counter, adapted.use_factors(factors, torch.arange(ROWS), 1.0):
        mean_loss(model, ids, labels).backward()
    expected = memory.training_flops(shape, ROWS, TOKENS, ANSWERS, generated=False)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.15)  # it counts no causal halves, and the LoRA

    mistral = HyperShape(SHAPES["mistral-7b"], "L")
    assert memory.training_flops(mistral, 8, 512, 512, generated=False) == pytest.approx(119e12, rel=0.02)
    assert memory.head_flops(mistral) == pytest.approx(3.5e9, rel=0.01)


def small(dtype: torch.dtype = torch.float32) -> tuple[MistralForCausalLM, AdaptedModel]:
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=SMALL.vocab,
            hidden_size=SMALL.hidden,
            intermediate_size=SMALL.intermediate,
            num_hidden_layers=SMALL.layers,
            num_attention_heads=SMALL.heads,
            num_key_value_heads=SMALL.kv_heads,
            sliding_window=None,
        )
    ).to(dtype)
    return model, AdaptedModel(model.eval(), TARGETS)


def batch(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, SMALL.vocab, (rows, TOKENS))
    labels = ids.clone()
    labels[:, :-ANSWERS] = -100
    return ids, labels


def random_factors(shape: HyperShape, n: int) -> dict:
    layers, r = shape.base.layers, shape.rank
    return {m: (torch.randn(n, layers, r, i), torch.randn(n, layers, o, r)) for m, (i, o) in shape.targets.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_backward_keeps_is_what_pytorch_saves(dtype):
    """Bytes of the tensors that autograd holds after a forward, each storage once, the weights left out."""
    model, adapted = small(dtype)
    ids, labels = batch()
    shape, bf16 = HyperShape(SMALL), dtype == torch.bfloat16
    factors = {m: (a.requires_grad_(), b.requires_grad_()) for m, (a, b) in random_factors(shape, ROWS).items()}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor  # held, so that no address comes twice

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        adapted.use_factors(factors, torch.arange(ROWS), 1.0),
    ):
        loss = mean_loss(model, ids, labels)
    parts = memory.through_base(
        shape, ROWS, TOKENS, ANSWERS, "bfloat16" if bf16 else "float32", dropout=False, bf16=bf16
    )
    logits = 4 * ROWS * ANSWERS * SMALL.vocab  # their log-softmax
    factor_bytes = (2 if bf16 else 4) * ROWS * shape.adapter
    assert sum(saved.values()) == pytest.approx(parts["kept for backward"] + logits + factor_bytes, rel=0.1)
    loss.backward()


def allocated(function) -> int:
    """The most bytes above the start that PyTorch's CPU allocator held while `function` ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now, most = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_an_sft_step_is_as_planned(checkpointing):
    model, adapted = small(torch.bfloat16)
    ids, labels = batch()
    shape = HyperShape(SMALL, d_emb=32)
    config = HyperLoRAConfig("M", dict(shape.targets), SMALL.layers, d_emb=32, offset="factors", dropout=0.05)
    sft = SFTModel(HyperLoRA(config), adapted, torch.randn(ROWS, 32))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": adapted.recomputing})
        model.disable_input_require_grads()
    sft.train()

    def forward_and_backward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = sft(ids, labels, torch.arange(ROWS))["loss"]
        loss.backward()

    forward_and_backward()  # its gradients stay, as between the passes of a step
    parts = memory.sft(shape, ROWS, TOKENS, ANSWERS, checkpointing=checkpointing, dropout=False)
    before = memory.ADAM * shape.parameters + parts["base"] + parts["overhead"]  # there already, or not on a CPU
    measured, planned = allocated(forward_and_backward), sum(parts.values()) - before
    assert 0.95 * measured < planned < 1.25 * measured


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("loras", "rows"), [(1, 4), (4, 1), (3, 2)])
def test_the_peak_of_a_step_of_plain_loras_is_as_planned(loras, rows, checkpointing):
    """Forward and backward of LoRAs trained together, `rows` rows each."""
    model, adapted = small(torch.bfloat16)
    ids, labels = batch(loras * rows)
    shape = HyperShape(SMALL)
    weights = {m: (a.requires_grad_(), b.requires_grad_()) for m, (a, b) in random_factors(shape, loras).items()}
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": adapted.recomputing})
        model.disable_input_require_grads()
        model.train()

    def forward_and_backward() -> None:
        each = torch.arange(loras).repeat_interleave(rows)
        with torch.autocast("cpu", torch.bfloat16), adapted.use_factors(weights, each, 1.0):
            loss = mean_loss(model, ids, labels)
        loss.backward()

    forward_and_backward()  # its gradients stay, as between the passes of a step
    parts = memory.lora(shape, loras, rows, TOKENS, ANSWERS, checkpointing=checkpointing, dropout=False)
    before = parts["LoRAs"] + parts["base"] + parts["overhead"]  # there already, or not on a CPU
    measured, planned = allocated(forward_and_backward), sum(parts.values()) - before
    assert 0.95 * measured < planned < 1.25 * measured


@pytest.mark.parametrize("piece", [2**18, 2**21])
@pytest.mark.parametrize(("head", "loss"), [("L", "factors"), ("M", "factors"), ("M", "delta"), ("S", "factors")])
def test_the_peak_of_a_step_of_reconstruction_is_as_planned(head, loss, piece, tmp_path):
    """Of 64 LoRAs: in several pieces, and a module at once. No dropout, whose masks take more on a CPU."""
    targets, d_emb = 64, 32
    shape = HyperShape(SMALL, head, d_emb=d_emb)
    for i in range(targets):
        weights = {m: (a[0], b[0]) for m, (a, b) in random_factors(shape, 1).items()}
        Adapter(weights, 16.0, True).save_pretrained(tmp_path / "loras" / f"{i}")
    library = pack(tmp_path / "loras", tmp_path / "library.safetensors")
    config = ReconConfig(head=head, task_input="learned", learned_size=d_emb, dropout=0.0)
    recon = ReconModel(build(library, config), library, torch.arange(targets), loss, piece)

    def forward_and_backward() -> None:
        recon.zero_grad()
        recon(torch.arange(targets), torch.arange(targets), torch.tensor(64.0))["loss"].backward()

    forward_and_backward()
    recon.zero_grad()
    parts = memory.recon(shape, targets, piece)
    before = (memory.ADAM - 4) * shape.parameters + parts["mean and deviation"] + parts["overhead"]
    measured, planned = allocated(forward_and_backward), sum(parts.values()) - before
    assert 0.95 * measured < planned < 1.25 * measured
