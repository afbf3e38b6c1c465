"""The memory model against real modules, real allocations and the counts that are known."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import MistralConfig, MistralForCausalLM

from hyperlora import memory
from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import HyperLoRAConfig
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.hypernetwork import HyperNetwork
from hyperlora.lora import Adapter
from hyperlora.memory import SHAPES, BaseShape, HyperShape
from tests.training.test_sft import ROOT
from training.parts.library import pack
from training.parts.loss import mean_loss
from training.plan import GPUS, Options, main, stages
from training.recon import ReconConfig, ReconModel, build
from training.sft import SFTModel

TARGETS = ("q_proj", "v_proj")
# Large enough that what grows with the tokens is nearly all of it.
SMALL = BaseShape(layers=4, hidden=256, intermediate=704, heads=8, kv_heads=2, head_dim=32, vocab=512)
ROWS, TOKENS, ANSWERS = 4, 128, 16


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mistral-7b", 7_241_732_096), ("llama-3.1-8b", 8_030_261_248), ("gemma-2-2b", 2_614_341_888)],
)
def test_the_named_bases_have_their_makers_counts(name, parameters):
    assert SHAPES[name].parameters == parameters


def test_a_folder_is_read_as_it_is(tiny_base, tiny_model):
    base = BaseShape.from_folder(tiny_base)
    assert base.parameters == sum(parameter.numel() for parameter in tiny_model.parameters())
    assert base.bytes("float32") == tiny_model.get_memory_footprint(return_buffers=False)
    assert base.targets(TARGETS) == AdaptedModel(tiny_model, TARGETS).target_modules


@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_a_hypernetwork_has_the_papers_count(head):
    """App. C, with 1024 values a description instead of its 16."""
    assert HyperShape(SHAPES["mistral-7b"], head).parameters == {"L": 55_317_504, "M": 34_346_752, "S": 4_987_904}[head]
    shape = HyperShape(SMALL, head, rank=3, target_modules=("q_proj", "v_proj", "down_proj"), d_emb=24)
    with torch.device("meta"):
        network = HyperNetwork(
            HyperLoRAConfig(head, dict(shape.targets), SMALL.layers, d_emb=24, rank=3, offset="factors")
        )
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    factors = network(torch.empty(1, 24, device="meta"))
    assert shape.adapter == sum(side.numel() for pair in factors.values() for side in pair)


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
    assert mistral.head_flops == pytest.approx(3.5e9, rel=0.01)


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


def test_a_base_in_4_bits_takes_what_is_planned(tmp_path, tiny_base):
    pytest.importorskip("bitsandbytes")
    model, _ = load_base(tiny_base, dtype=torch.bfloat16, quantize="4bit")
    state = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert BaseShape.from_folder(tiny_base).bytes("4bit") == pytest.approx(state, rel=0.25)  # its tables are not scaled


@pytest.mark.parametrize(
    ("config", "stage", "gpu", "processes"),
    [
        ("lora-mistral-7b", "a LoRA a task", "A100 80", 1),
        ("sft-mistral-7b", "SFT", "A100 80", 1),
        ("sft-mistral-7b-4bit-ddp", "SFT", "L4", 8),
        ("sft-mistral-7b-fsdp", "SFT", "L4", 8),
    ],
)
def test_the_shipped_settings_fit_the_gpus_that_they_name(config, stage, gpu, processes):
    """With rows of up to 1,024 tokens."""
    values = yaml.safe_load((ROOT / "training" / "configs" / f"{config}.yaml").read_text())
    if stage == "a LoRA a task":
        values["lora_batch_size"] = values.pop("batch_size")
    known = {key: value for key, value in values.items() if key in Options.__dataclass_fields__ and key != "base"}
    options = Options(**known, processes=processes, longest=1024)
    assert stages(options)[stage].bytes < GPUS[gpu].memory * memory.GB


def test_the_plan_is_a_table_of_stages_and_gpus(capsys):
    main(["--batch_size", "16", "--longest", "2048"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| stage | memory | RTX 3090 |")
    sft = next(line for line in lines if line.startswith("| SFT"))
    assert "too small" in sft
    main(["--base_dtype", "4bit", "--gradient_checkpointing"])
    sft = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| SFT"))
    assert "too small" not in sft and sft.endswith(" h |")


def test_more_devices_take_less_time_and_a_split_base_less_memory():
    one, eight = (stages(Options(processes=n, shard_base=n > 1))["SFT"] for n in (1, 8))
    assert eight.hours(GPUS["H100"], 0.4) == pytest.approx(one.hours(GPUS["H100"], 0.4) / 8)
    assert eight.parts["base"] < one.parts["base"] / 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--base", "nowhere"], "There is no base 'nowhere'"),
        (["--target_modules", "q_proj,x"], "has no x in its layers"),
        (["--shard_base", "--base_dtype", "4bit"], "is held in float32 or bfloat16"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        main(arguments)


def test_a_config_that_is_no_dense_decoder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="mixture of experts"):
        BaseShape.from_config({"num_local_experts": 8})
    with pytest.raises(UserError, match="hidden_size"):
        BaseShape.from_config({"num_hidden_layers": 2})
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    with pytest.raises(UserError, match="a whole number as num_key_value_heads, or none"):
        BaseShape.from_config(dict.fromkeys(sizes, 8) | {"num_key_value_heads": "8"})
    for config in ([], {"text_config": "x"}):
        with pytest.raises(UserError, match="should be an object of settings"):
            BaseShape.from_config(config)
    with pytest.raises(UserError, match=r"config\.json"):
        BaseShape.from_folder(tmp_path)
