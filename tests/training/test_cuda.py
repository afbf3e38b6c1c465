"""A GPU gives what the CPU gives; skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import decode, rehearsal
from benchmarks.real_shapes import SHAPES, random_base
from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.chat import ChatEngine
from hyperlora.generator import HyperLoRA
from training import recon, sft
from training.lora import LoRAConfig, train_loras
from training.parts.adapters import save_adapters
from training.parts.library import pack
from training.parts.scoring import Trial, score

DEVICE = "cuda"
DEVICES = ("cpu", DEVICE)
TARGETS = ["q_proj", "v_proj"]
FEW = sft.SFTConfig(
    batch_size=6, gradient_accumulation_steps=1, max_steps=4, dropout=0, lora_dropout=0, neftune_alpha=0, log_every=1
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


def losses(log: list[dict], key: str = "loss") -> list[float]:
    return [line[key] for line in log if key in line]


def test_every_row_has_its_own_adapter(tiny_base, make_adapter):
    ids, found = torch.arange(5, 13).repeat(4, 1), []
    for device in DEVICES:
        adapted = AdaptedModel(load_base(tiny_base, device=device)[0], TARGETS)
        one, two = adapted.load(make_adapter(1)), adapted.load(make_adapter(2).scaled(0.5))
        with torch.no_grad(), adapted.use([one, None, two, one]):
            found.append(adapted.model(ids.to(device)).logits.cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", "LMS")
def test_a_generated_adapter_is_the_same(make_config, head):
    hyperlora = HyperLoRA(make_config(head=head)).eval()
    for part in hyperlora.network.heads.values():
        torch.nn.init.normal_(part.weight, std=0.1)
    embedding, found = torch.randn(1, 16), []
    for device in DEVICES:
        [adapter] = hyperlora.to(device).generate(embeddings=embedding)
        found.append(adapter.weights["v_proj"])
    for there, here in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-5)


def test_chats_together_are_answered_as_alone_on_the_cpu(tiny_base, make_adapter):
    prompts, found = ["one two", "three", "a longer one than these"], []
    for device in DEVICES:
        model, tokenizer = load_base(tiny_base, device=device)
        adapted = AdaptedModel(model, TARGETS)
        engine = ChatEngine(adapted, tokenizer)
        replies = engine.submit_many(prompts, [make_adapter(1), None, make_adapter(2)], max_new_tokens=12)
        found.append(["".join(reply) for reply in replies])
        engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_of_decoding_can_be_a_graph(graphs):
    base = random_base(SHAPES["mini"], torch.bfloat16, DEVICE)
    with torch.inference_mode():  # it ends where PEFT's logits are others
        assert decode.compare(base, 3, 16, torch.float32, graphs, repetitions=1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sft_has_the_cpus_losses(tiny_base, tasks, embedder, make_adapter, checkpointing, tmp_path):
    found = []
    for device in DEVICES:
        model, tokenizer = load_base(tiny_base, device=device)
        adapted, config = AdaptedModel(model, TARGETS), replace(FEW, gradient_checkpointing=checkpointing)
        hyperlora = sft.build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
        found.append(losses(sft.train(hyperlora, adapted, tokenizer, tasks, config, tmp_path / device)))
    assert found[1] == pytest.approx(found[0], rel=1e-3) and len(found[0]) == 4


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("loss", ["factors", "delta"])
def test_reconstruction_has_the_cpus_losses(tiny_base, make_adapter, tmp_path, loss, on_device):
    loras = {f"task{i}": make_adapter(i, base_model=str(tiny_base)) for i in range(5)}
    save_adapters(tmp_path / "loras", loras, {})
    found = []
    for device in DEVICES:
        library = pack(tmp_path / "loras", tmp_path / "library.safetensors")
        config = recon.ReconConfig(
            task_input="one_hot", loss=loss, max_steps=4, dropout=0, log_every=1, targets_on_device=on_device
        )
        hyperlora = recon.build(library, config)
        found.append(losses(recon.train(hyperlora, library, config, tmp_path / device, device=device)))
    assert found[1] == pytest.approx(found[0], rel=1e-3) and len(found[0]) == 4


def test_plain_loras_and_their_scores_are_the_cpus(tiny_base, tasks):
    config, found = LoRAConfig(max_steps=3, lora_dropout=0, neftune_alpha=0, learning_rate=1e-2), []
    for device in DEVICES:
        model, tokenizer = load_base(tiny_base, device=device)
        adapted = AdaptedModel(model, TARGETS)
        adapters = train_loras(adapted, tokenizer, {task.name: [task] for task in tasks}, config)
        scores = score(adapted, tokenizer, [Trial(t, t.test, adapter=adapters[t.name]) for t in tasks])
        found.append((adapters, scores))
    for task in tasks:
        for here, there in zip(*(adapters[task.name].weights["q_proj"] for adapters, _ in found), strict=True):
            torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-3)
    assert found[0][1] == found[1][1]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, shape = tmp_path_factory.mktemp("rehearsed"), rehearsal.base_shape(layers=2, hidden=1024)
    rehearsal.write_base(folder / "base", shape, device=DEVICE)
    rehearsal.write_checkpoint(folder / "hyperlora", shape, embedder="")
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "8bit", "4bit"])
def test_a_rehearsal_ends_with_peft_giving_the_same_logits(rehearsed, precision, tmp_path, monkeypatch):
    if "bit" in precision:
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    assert rehearsal.rehearse(rehearsed, DEVICE, precision, tokens=4)
