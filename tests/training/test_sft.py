import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch._dynamo.utils import counters

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from training.parts.batches import IGNORE, collate, encode, encode_task
from training.parts.compile import has_compiler
from training.parts.loss import training_mode
from training.parts.network import save, trained_descriptions
from training.sft import SFTConfig, SFTModel, build, main, train

ROOT = Path(__file__).parents[2]

QUICK = SFTConfig(
    batch_size=12,
    gradient_accumulation_steps=1,
    max_steps=60,
    learning_rate=3e-3,
    neftune_alpha=0,
    log_every=10,
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
    model = SFTModel(
        hyperlora, adapted, embedder.embed(["Do first.", "Do second."]), few(1, embedding_noise=0.5)
    ).eval()
    with torch.no_grad():
        batch = collate(rows, tokenizer.pad_token_id)
        together = model(**batch, index=torch.tensor([0, 1, 0]))["loss"]
        losses = []
        for row, adapter in zip(rows, hyperlora.generate(["Do first.", "Do second.", "Do first."]), strict=True):
            one = collate([row], tokenizer.pad_token_id)
            with adapted.use([adapted.load(adapter)]):
                losses.append(adapted.model(input_ids=one["input_ids"], labels=one["labels"]).loss)
    torch.testing.assert_close(together, torch.stack(losses).mean())  # each answer has as many tokens


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"weight_l2": 0.5}, {"equal_rows": True}, {
    "label_smoothing": 0.3, "weight_l2": 1e-3, "equal_rows": True}])  # fmt: skip
def test_the_losses_of_the_public_code(adapted, tokenizer, tasks, embedder, make_adapter, options):
    """Against them as they are written there, over all logits, each row with an adapter of its own."""
    config = few(1, lora_dropout=0.0, dropout=0.0, **options)
    hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
    torch.nn.init.normal_(hyperlora.network.heads["q_proj"].weight, std=0.02)
    inputs, index = embedder.embed(["Do first.", "Do second."]), torch.tensor([0, 1, 0])
    long = encode(tokenizer, "ab", "a much longer answer")
    batch = collate([*(encode_task(tokenizer, task)[0] for task in tasks[:2]), long], tokenizer.pad_token_id)
    model = SFTModel(hyperlora, adapted, inputs, config, step_rows=12).train()
    ours = model(**batch, index=index)["loss"]

    factors = hyperlora.factors(inputs[index])
    with adapted.use_factors(factors, torch.arange(3), hyperlora.scale):
        logits = adapted.model(input_ids=batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    smoothing, counts = options.get("label_smoothing", 0.0), (labels != IGNORE).sum(-1, keepdim=True)
    each = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)(
        logits.flatten(0, 1), labels.flatten()
    )
    each = each.view_as(labels)
    theirs = (each / counts).sum(-1).mean() if config.equal_rows else each.sum() / counts.sum()
    theirs = theirs + sum(((A**2).mean() + (B**2).mean()) * config.weight_l2 for A, B in factors.values())
    torch.testing.assert_close(ours, theirs)

    part = model(**batch, index=index, num_items_in_batch=4 * counts.sum())["loss"]  # a quarter of a step
    torch.testing.assert_close(4 * part, ours)
    validation = model.eval()(**batch, index=index)["loss"]
    assert not torch.isclose(validation, ours) or options == {"equal_rows": True}


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


@pytest.mark.parametrize("offset", ["factors", "delta", "none"])
def test_a_run_goes_on_from_a_saved_hypernetwork_with_the_loss_that_it_had(
    adapted, tokenizer, tasks, embedder, make_adapter, tmp_path, offset
):
    """`--init`: its weights and its offset, a new optimizer, and a rate that is constant but for its ends."""
    config = replace(QUICK, offset=offset, schedule="constant", max_steps=40, log_every=1)
    first = build(adapted, tokenizer, tasks, config, make_adapter(1) if offset != "none" else None, embedder)
    before = train(first, adapted, tokenizer, tasks, config, tmp_path / "first")
    saved = HyperLoRA.from_pretrained(tmp_path / "first")
    second = build(adapted, tokenizer, tasks, replace(config, seed=1), embedder=embedder, init=saved)
    [there], [here] = saved.generate(embeddings=embedder.embed(["Do first."])), second.generate("Do first.")
    torch.testing.assert_close(here.weights, there.weights)
    after = train(second, adapted, tokenizer, tasks, replace(config, seed=1), tmp_path / "second")
    losses = [[line["loss"] for line in log if "loss" in line] for log in (before, after)]
    fall = losses[0][0] - min(losses[0][-5:])
    assert fall > 0.3 and losses[1][0] < max(losses[0][-5:]) + 0.1 * fall  # other rows, so not the same to the bit
    rates = [line["learning_rate"] for line in after if "learning_rate" in line]
    assert rates[4:36] == [config.learning_rate] * 32 and rates[-1] < 0.5 * config.learning_rate


def test_only_a_hypernetwork_of_the_same_form_is_gone_on_from(adapted, tokenizer, tasks, embedder, make_adapter):
    init = build(adapted, tokenizer, tasks, QUICK, make_adapter(1), embedder)
    for change in ({"head": "L"}, {"rank": 4}, {"offset": "delta"}, {"prompt_style": "description_input"}):
        with pytest.raises(UserError, match=f"init was trained with {next(iter(change))}"):
            build(adapted, tokenizer, tasks, replace(QUICK, **change), embedder=embedder, init=init)
    with pytest.raises(UserError, match="leave offset_adapter away"):
        build(adapted, tokenizer, tasks, QUICK, make_adapter(1), embedder, init=init)


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


@pytest.mark.parametrize("others", [{}, {"tool_use": "t"}, {"rag": "r", "tool_use": "t"}])
def test_of_named_chat_templates_the_default_is_stored(adapted, tokenizer, tasks, embedder, monkeypatch, others):
    own = tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", others | {"default": own})
    assert build(adapted, tokenizer, tasks, SFTConfig(offset="none"), embedder=embedder).config.chat_template == own


def test_the_command_line_trains_head_s_with_task_ids(tasks, tiny_base, tmp_path):
    for task in tasks:
        task.save(tmp_path / "tasks")
    folders = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{tiny_base}", "--output", f"{tmp_path / 'out'}"]
    main([*folders, "--head", "S", "--offset", "none", "--task_input", "one_hot", "--max_steps", "1"])
    assert HyperLoRA.from_pretrained(tmp_path / "out").config.head == "S"


def losses(log: list[dict], key: str = "loss") -> list[float]:
    return [line[key] for line in log if key in line]


def few(steps: int, **fields) -> SFTConfig:
    """A short training without noise of any kind."""
    plain = {"dropout": 0.0, "lora_dropout": 0.0, "neftune_alpha": 0.0, "log_every": 1, "learning_rate": 1e-3}
    sizes = {"batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": steps}
    return SFTConfig(**plain | sizes | fields)


def test_a_step_is_the_same_however_it_is_cut_into_passes(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path):
    """The loss is a mean over the answer tokens of all passes: a mean of their means would differ, as answers do."""
    logs = []
    for size, passes in ((12, 1), (2, 6)):
        config = few(4, batch_size=size, gradient_accumulation_steps=passes)
        hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
        logs.append(losses(train(hyperlora, adapted, tokenizer, tasks, config, tmp_path / f"{size}")))
    assert logs[0] == pytest.approx(logs[1], abs=1e-5)


def test_a_step_of_the_public_losses_is_the_same_however_it_is_cut(
    adapted, tokenizer, tasks, embedder, make_adapter, tmp_path
):
    public = {"label_smoothing": 0.1, "weight_l2": 0.1, "equal_rows": True}
    found = []
    for size, passes in ((4, 1), (2, 2), (1, 4)):
        config = few(3, batch_size=size, gradient_accumulation_steps=passes, **public)
        hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
        output = tmp_path / f"{size}"
        found.append(losses(train(hyperlora, adapted, tokenizer, tasks, config, output)))
    assert found[1:] == [pytest.approx(found[0], rel=1e-4)] * 2


def test_gradient_checkpointing_changes_no_gradient(adapted, tokenizer, tasks, embedder, make_adapter):
    """With dropout on, and backward outside of the forward's adapters, as in the Trainer."""
    config = few(1)
    hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
    model = SFTModel(hyperlora, adapted, embedder.embed(["Do first.", "Do second."]))
    batch = collate([encode_task(tokenizer, task)[0] for task in tasks[:2]], tokenizer.pad_token_id)
    adapted.lora_dropout = 0.5
    gradients, saved = [], []
    for recomputing in (None, adapted.recomputing):
        torch.manual_seed(0)
        model.zero_grad()
        kept = []
        with training_mode(adapted.model, 5.0, recomputing):
            model.train()
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
            ):
                loss = model(**batch, index=torch.tensor([0, 1]))["loss"]
            loss.backward()
        gradients.append([parameter.grad.clone() for parameter in hyperlora.parameters()])
        saved.append(sum(kept))
    assert sum(float(gradient.abs().sum()) for gradient in gradients[0]) > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    assert saved[1] < saved[0]
    assert not adapted.model.is_activation_checkpointing


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_give_the_same_losses(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path):
    """With the same dropout, in training and in validation, once for all lengths and numbers of adapters; and the
    layers are as before."""
    many = [replace(task, descriptions=[f"Do {task.name} {i}." for i in range(3)]) for task in tasks]
    logs = []
    for compile in (False, True):
        torch._dynamo.reset()
        counters.clear()
        config = few(12, compile=compile, eval_every=6, eval_batches=2, lora_dropout=0.1)
        hyperlora = build(adapted, tokenizer, many, config, make_adapter(1), embedder)
        logs.append(train(hyperlora, adapted, tokenizer, many, config, tmp_path / f"{compile}"))
    for key in ("loss", "eval_loss"):
        assert losses(logs[0], key) == pytest.approx(losses(logs[1], key), abs=1e-4)
    assert 0 < counters["stats"]["unique_graphs"] <= 6 * adapted.num_layers and not counters["graph_break"]
    assert not any(module._compiled_call_impl for module in adapted.model.modules())


@pytest.mark.parametrize("compiled_base", ["checkpointing", "no layers"])
def test_what_cannot_be_compiled_is_refused(adapted, compiled_base):
    recomputing = adapted.recomputing if compiled_base == "checkpointing" else None
    if not recomputing:
        adapted.model._no_split_modules = set()
    with (
        pytest.raises(UserError, match="do not go together" if recomputing else "finds no layers"),
        training_mode(adapted.model, recomputing=recomputing, compiled=True),
    ):
        pass


def test_a_compiler_is_needed_to_compile(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = few(1, compile=True)
    hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
    with pytest.raises(UserError, match="compile needs"):
        train(hyperlora, adapted, tokenizer, tasks, config, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_no_number_leaves_no_checkpoint(
    adapted, tokenizer, tasks, embedder, make_adapter, tmp_path, log_every
):
    config = few(4, learning_rate=3e38, warmup_fraction=0.0, save_every=4, log_every=log_every, max_grad_norm=1e30)
    hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
    with pytest.raises(UserError, match="the loss is no finite number any more: lower learning_rate"):
        train(hyperlora, adapted, tokenizer, tasks, config, tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["settings.json"]


def test_at_most_so_many_descriptions_of_a_task_are_trained_on(adapted, tokenizer, tasks, embedder, tmp_path):
    many = [replace(task, descriptions=[f"Do {task.name} {i}." for i in range(9)]) for task in tasks]
    config = few(1, offset="none", max_descriptions=4)
    hyperlora = build(adapted, tokenizer, many, config, embedder=embedder)
    train(hyperlora, adapted, tokenizer, many, config, tmp_path)
    assert len(hyperlora.descriptions) == 12
    assert hyperlora.descriptions[:4] == trained_descriptions(many[0], config)
    assert set(hyperlora.descriptions[:4]) < set(many[0].descriptions)
    assert trained_descriptions(many[0], few(1)) == many[0].descriptions  # 128 by default


def test_the_best_hyperlora_on_held_out_tasks_is_kept(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path):
    """A learning rate that soon ruins the hypernetwork: the best is not the last."""
    config = few(12, learning_rate=1.0, warmup_fraction=0.0, eval_every=1, eval_batches=2)
    hyperlora = build(adapted, tokenizer, tasks[:2], config, make_adapter(1), embedder)
    log = train(hyperlora, adapted, tokenizer, tasks[:2], config, tmp_path, held_out=tasks[2:])
    checks = losses(log, "eval_loss")
    assert len(checks) == 12 and min(checks) < checks[-1]

    best = HyperLoRA.from_pretrained(tmp_path / "best")
    best.embedder = embedder
    again = few(1, learning_rate=0.0, eval_every=1, eval_batches=2)
    log = train(best, adapted, tokenizer, tasks[:2], again, tmp_path / "again", held_out=tasks[2:])
    assert losses(log, "eval_loss") == [pytest.approx(min(checks), abs=1e-5)]

    with pytest.raises(UserError, match="'first' is trained on and held out"):
        train(best, adapted, tokenizer, tasks[:2], again, tmp_path / "again", held_out=tasks[:1])
    bare = replace(tasks[2], descriptions=[], eval_descriptions=[])
    with pytest.raises(UserError, match="The held-out task 'both' has no descriptions"):
        train(best, adapted, tokenizer, tasks[:2], again, tmp_path / "bare", held_out=[bare])
    with pytest.raises(UserError, match="There is nothing to validate on"):
        unread = [replace(task, eval_descriptions=[]) for task in tasks[:2]]
        train(best, adapted, tokenizer, unread, again, tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


def command(base: Path, tasks: Path, output: Path, *more: str) -> list[str]:
    """Arguments of a training that needs no sentence encoder."""
    folders = ["--tasks", str(tasks), "--base", str(base), "--output", str(output)]
    return [*folders, "--offset", "none", "--task_input", "one_hot", "--log_every", "1", *more]


def logged(output: Path, step: int) -> list[float]:
    state = json.loads((output / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return losses(state["log_history"])


def test_a_killed_run_resumes_to_the_same_losses(tasks, tiny_base, tmp_path):
    """SIGKILL as soon as the second checkpoint is begun; dropout and NEFTune are on."""
    for task in tasks:
        task.save(tmp_path / "tasks")
    size = ["--batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "40", "--save_every", "5"]
    whole, killed = (command(tiny_base, tmp_path / "tasks", tmp_path / name, *size) for name in ("whole", "killed"))
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "training.sft", *killed], cwd=ROOT, env=os.environ | threads)
    while not (tmp_path / "killed" / "checkpoints" / "checkpoint-10").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "killed" / "hyperlora.safetensors").exists()  # of the first checkpoint: `--init` may take it

    main(whole)
    main([*killed, "--resume"])
    assert logged(tmp_path / "killed", 40) == logged(tmp_path / "whole", 40)
    assert len(logged(tmp_path / "whole", 40)) == 40
    same = [(tmp_path / name / "hyperlora.safetensors").read_bytes() for name in ("whole", "killed")]
    assert same[0] == same[1]


@contextmanager
def full_disk():
    """Inside, no file gets larger than 50 kB, as if the disk were full. (Not until the test's end: a log may be.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    adapted, tokenizer, tasks, embedder, make_adapter, tmp_path
):
    config = few(2, save_every=1)
    hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
    save(hyperlora, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    torch.nn.init.ones_(hyperlora.network.heads["q_proj"].weight)
    with full_disk(), pytest.raises(UserError, match=r"could not be written \(File too large\): free some space"):
        save(hyperlora, tmp_path)
    with full_disk(), pytest.raises(UserError, match="checkpoint-1 could not be written"):
        train(hyperlora, adapted, tokenizer, tasks, config, tmp_path)
    assert not (tmp_path / "checkpoints" / "checkpoint-1").exists()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_is_resumed_with_its_own_settings(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path):
    def run(steps, resume=False, **fields):
        config = few(steps, **fields)
        hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
        return train(hyperlora, adapted, tokenizer, tasks, config, tmp_path, resume)

    run(1)
    with pytest.raises(UserError, match="holds an earlier run: resume it"):
        run(1)
    with pytest.raises(UserError, match="was trained with head 'M', not 'S'"):
        run(2, resume=True, head="S")
    with pytest.raises(UserError, match="rows of an optimizer step 4, not 8"):
        run(2, resume=True, gradient_accumulation_steps=2)
    assert len(losses(run(2, resume=True, batch_size=2, gradient_accumulation_steps=2))) == 2


def test_a_run_is_resumed_with_its_own_tasks_base_and_offset(
    adapted, tokenizer, tasks, embedder, make_adapter, tiny_base, tmp_path, monkeypatch
):
    config = few(1)

    def run(tasks, resume=True, offset=1, adapted=adapted):
        adapter = make_adapter(offset)
        adapter.weights = {module: adapter.weights[module] for module in adapted.target_modules}
        hyperlora = build(adapted, tokenizer, tasks, config, adapter, embedder)
        return train(hyperlora, adapted, tokenizer, tasks, config, tmp_path, resume)

    run(tasks, resume=False)
    with pytest.raises(
        UserError, match=r"was trained with tasks '3 tasks \(.*, not '2 tasks \(.*: resume with the same"
    ):
        run(tasks[:2])
    more = [replace(tasks[0], descriptions=[*tasks[0].descriptions, "Give first."]), *tasks[1:]]
    with pytest.raises(UserError, match="was trained with descriptions and examples"):
        run(more)
    with pytest.raises(UserError, match="was trained with offset adapter"):
        run(tasks, offset=2)
    with pytest.raises(UserError, match="was trained with target modules 'q_proj, v_proj', not 'q_proj'"):
        run(tasks, adapted=AdaptedModel(adapted.model, ["q_proj"]))
    base = shutil.copytree(tiny_base, tmp_path / "base")
    monkeypatch.setattr(adapted.model.config, "name_or_path", str(base))
    assert run(tasks)  # the same base, wherever it lies
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match="was trained with content of the base"):
        run(tasks)
    monkeypatch.setattr(adapted.model.config, "name_or_path", "owner/name")
    with pytest.raises(UserError, match=r"content of the base .*, not 'owner/name@None'"):
        run(tasks)

    path = tmp_path / "checkpoints" / "settings.json"
    new = {"tasks", "descriptions and examples", "content of the base", "target modules", "offset adapter"}
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in new}
    path.write_text(json.dumps(kept))  # as they were written before these were kept
    run(tasks)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16", "4bit", "8bit"])
def test_training_goes_on_after_an_evaluation_whatever_the_base_is_held_in(
    tiny_base, tasks, embedder, make_adapter, base_dtype, device, tmp_path
):
    """The gradient after a validation is that of a run without one; a base that cannot do that is refused."""
    quantize = base_dtype if "bit" in base_dtype else None
    if quantize:
        pytest.importorskip("bitsandbytes")
    dtype = torch.float32 if base_dtype == "float32" else torch.bfloat16
    model, tokenizer = load_base(tiny_base, device=device, dtype=dtype, quantize=quantize)
    adapted = AdaptedModel(model, ["q_proj", "v_proj"])
    if refused := any(
        device == "cpu" and getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules()
    ):
        assert base_dtype == "4bit"
    logs = []
    for eval_every in (0, 2):
        config = few(4, eval_every=eval_every, eval_batches=1, learning_rate=1e-2, bf16=dtype == torch.bfloat16)
        hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
        if refused:
            with pytest.raises(UserError, match="4-bit base model cannot be trained on this CPU"):
                train(hyperlora, adapted, tokenizer, tasks, config, tmp_path / f"{eval_every}")
            return
        logs.append(train(hyperlora, adapted, tokenizer, tasks, config, tmp_path / f"{eval_every}"))
    on_gpu = {"loss": 1e-2, "grad_norm": 5e-2}  # which adds in any order; a CPU always in the same
    for key, near in on_gpu.items():
        near = near if device == "cuda" else 0
        assert losses(logs[0], key) == pytest.approx(losses(logs[1], key), rel=near, abs=0)
    assert min(losses(logs[0], "grad_norm")) > 0


def test_a_base_that_bitsandbytes_would_repack_is_refused(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path):
    hyperlora = build(adapted, tokenizer, tasks, few(1), make_adapter(1), embedder)
    adapted.model.model.layers[0].self_attn.o_proj.support_avx512bf16_for_cpu = True  # as bitsandbytes marks its own
    with pytest.raises(UserError, match="Load it in bfloat16, or use a GPU"):
        train(hyperlora, adapted, tokenizer, tasks, few(1), tmp_path)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--target_modules", "q_proj,wrong"], "has no wrong in its layers"),
        (["--shard_base"], "shard_base needs several processes"),
        (["--held_out", "x"], "held_out needs eval_every"),
        (["--base_dtype", "4bit", "--report_to", "wandb"], "pip install wandb"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(tasks, tiny_base, tmp_path, monkeypatch, more, sentence):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else "there")
    tasks[0].save(tmp_path / "tasks")
    with pytest.raises(UserError, match=sentence):
        main(command(tiny_base, tmp_path / "tasks", tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_a_task_that_cannot_be_trained_is_named(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path):
    nameless = [tasks[0], replace(tasks[1], name="mute", descriptions=[])]
    with pytest.raises(UserError, match="'mute' has no descriptions"):
        build(adapted, tokenizer, nameless, QUICK, make_adapter(1), embedder)
    one_hot = replace(QUICK, task_input="one_hot", offset="none")
    hyperlora = build(adapted, tokenizer, nameless, one_hot)
    with pytest.raises(UserError, match="'blank' has no training examples"):
        train(hyperlora, adapted, tokenizer, [tasks[0], replace(tasks[1], name="blank", train=[])], one_hot, tmp_path)
    hyperlora = build(adapted, tokenizer, tasks, QUICK, make_adapter(1), embedder)
    with pytest.raises(UserError, match="None of the tasks has training examples"):
        train(hyperlora, adapted, tokenizer, [replace(task, train=[]) for task in tasks], QUICK, tmp_path)
    replace(tasks[0], train=[]).save(tmp_path / "tasks")
    with pytest.raises(UserError, match="'first' has no training examples"):  # before there is a base to load
        main(command(tmp_path / "nowhere", tmp_path / "tasks", tmp_path / "out"))


def test_help_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="training.sft"))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m training.sft ")


def test_an_unknown_option_in_a_config_file_is_refused(tmp_path):
    (tmp_path / "sft.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(UserError, match="unknown option 'learning_rat'"):
        main(["--config", str(tmp_path / "sft.yaml")])


def test_an_embedder_of_another_size_is_refused(adapted, tokenizer, tasks, embedder, make_adapter):
    hyperlora = build(adapted, tokenizer, tasks, few(1), make_adapter(1), embedder)
    embedder.d_emb = 8
    with pytest.raises(UserError, match="gives 8 values, but this hypernetwork takes 16"):
        hyperlora.embedder = embedder


def test_progress_says_speed_and_time_left(adapted, tokenizer, tasks, embedder, make_adapter, tmp_path, capsys):
    config = few(2, eval_every=2, eval_batches=1)
    train(
        build(adapted, tokenizer, tasks, config, make_adapter(1), embedder), adapted, tokenizer, tasks, config, tmp_path
    )
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("step 1 of 2: loss ") and line.endswith(" left") for line in lines)
    assert any("tokens/s" in line for line in lines)
    assert any(line.startswith("step 2: validation loss ") for line in lines)
