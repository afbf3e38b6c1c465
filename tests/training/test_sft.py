import pytest
import torch
from safetensors import safe_open

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from training.sft import SFTConfig, SFTModel, build, main, train
from training.tasks import collate, encode_task

QUICK = SFTConfig(
    batch_size=12,
    gradient_accumulation_steps=1,
    max_steps=60,
    learning_rate=3e-3,
    neftune_alpha=0,
    log_every=10,
    bf16=True,
)


def test_training_lowers_the_loss_and_leaves_the_base_alone(
    adapted, tokenizer, tasks, embedder, make_adapter, tmp_path
):
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    hyperlora = build(adapted, tokenizer, tasks, QUICK, make_adapter(1), embedder)
    log = train(hyperlora, adapted, tokenizer, tasks, QUICK, tmp_path)
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0] - 0.3  # the random base turns its last layer into logits of about 1 at most
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.model.state_dict().items())
    assert not adapted.model.training and adapted.model.config._attn_implementation == "sdpa"  # as they were


@pytest.mark.parametrize("offset", ["factors", "delta"])
def test_at_step_0_the_adapter_is_the_offset(adapted, tokenizer, tasks, embedder, make_adapter, offset):
    multi_task = make_adapter(1)
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(offset=offset), multi_task, embedder)
    [generated] = hyperlora.generate("Do first.")
    for module in multi_task.weights:
        torch.testing.assert_close(generated.delta_w(module, 1), multi_task.delta_w(module, 1))


def test_an_offset_needs_its_adapter(adapted, tokenizer, tasks, embedder, make_adapter):
    with pytest.raises(UserError, match="needs"):
        build(adapted, tokenizer, tasks, SFTConfig(offset="factors"), None, embedder)
    with pytest.raises(UserError, match="takes no"):
        build(adapted, tokenizer, tasks, SFTConfig(offset="none"), make_adapter(1), embedder)


def test_the_loss_is_that_of_the_generated_adapters(adapted, tokenizer, tasks, embedder, make_adapter):
    """A batch of two descriptions, against each description's exported adapter alone."""
    hyperlora = build(adapted, tokenizer, tasks, QUICK, make_adapter(1), embedder)
    torch.nn.init.normal_(hyperlora.network.heads["q_proj"].weight, std=0.02)
    rows = [encode_task(tokenizer, task)[0] for task in (tasks[0], tasks[1], tasks[0])]
    model = SFTModel(hyperlora, adapted, embedder.embed(["Do first.", "Do second."]), embedding_noise=0.5).eval()
    with torch.no_grad():
        batch = collate(rows, tokenizer.pad_token_id)
        together = model(**batch, index=torch.tensor([0, 1, 0]))["loss"]
        losses = []
        for row, adapter in zip(rows, hyperlora.generate(["Do first.", "Do second.", "Do first."]), strict=True):
            one = collate([row], tokenizer.pad_token_id)
            with adapted.use([adapted.load(adapter)]):
                losses.append(adapted.model(input_ids=one["input_ids"], labels=one["labels"]).loss)
    torch.testing.assert_close(together, torch.stack(losses).mean())  # each answer has as many tokens


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    adapted, tokenizer, tasks, embedder, make_adapter, tmp_path
):
    """With dropout, NEFTune, noise on the embedding, gradient accumulation and validation all on."""
    config = SFTConfig(
        batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=8,
        learning_rate=1e-3,
        embedding_noise=0.3,
        log_every=1,
        save_every=5,
        eval_every=3,
    )

    def losses(output, resume=False):
        hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
        log = train(hyperlora, adapted, tokenizer, tasks, config, output, resume)
        return [line["loss"] for line in log if "loss" in line], [
            line["eval_loss"] for line in log if "eval_loss" in line
        ]

    whole = losses(tmp_path)
    assert (tmp_path / "checkpoints" / "checkpoint-5").is_dir()
    (tmp_path / "checkpoints" / "checkpoint-8").rename(tmp_path / "checkpoint-8")  # as if killed after step 5
    assert losses(tmp_path, resume=True) == whole
    with safe_open(tmp_path / "checkpoint-8" / "model.safetensors", "pt") as file:
        assert all(key.startswith("hyperlora.") for key in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("task_input", ["one_hot", "learned"])
def test_a_task_can_be_an_id(adapted, tokenizer, tasks, task_input, tmp_path):
    config = SFTConfig(task_input=task_input, offset="none", batch_size=4, gradient_accumulation_steps=1, max_steps=2)
    hyperlora = build(adapted, tokenizer, tasks, config)
    train(hyperlora, adapted, tokenizer, tasks, config, tmp_path)
    inputs = torch.eye(3) if task_input == "one_hot" else torch.arange(3)
    assert len(HyperLoRA.from_pretrained(tmp_path).generate(embeddings=inputs)) == 3


def test_the_saved_hyperlora_generates_the_same_adapters(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path):
    config = SFTConfig(batch_size=4, gradient_accumulation_steps=1, max_steps=2, learning_rate=1e-2)
    hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
    train(hyperlora, adapted, tokenizer, tasks, config, tmp_path)
    loaded = HyperLoRA.from_pretrained(tmp_path)
    loaded.embedder = embedder
    [a], [b] = hyperlora.generate("Do both."), loaded.generate("Do both.")
    assert all(torch.equal(x, y) for m in a.weights for x, y in zip(a.weights[m], b.weights[m], strict=True))
    assert b.nearest == ("Do both.", pytest.approx(1, abs=1e-3))
    assert loaded.config.chat_template == tokenizer.chat_template


def test_the_command_line_trains_head_s_with_task_ids(tasks, tiny_base, tmp_path):
    for task in tasks:
        task.save(tmp_path / "tasks")
    folders = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{tiny_base}", "--output", f"{tmp_path / 'out'}"]
    main([*folders, "--head", "S", "--offset", "none", "--task_input", "one_hot", "--max_steps", "1"])
    assert HyperLoRA.from_pretrained(tmp_path / "out").config.head == "S"
