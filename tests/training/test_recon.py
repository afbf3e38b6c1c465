import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.hypernetwork import HyperNetwork
from training.parts.adapters import load_adapters, save_adapters
from training.parts.library import pack
from training.parts.options import parse
from training.recon import Draws, Options, ReconConfig, ReconModel, build, errors, main, train

ONE_HOT = ReconConfig(task_input="one_hot", dropout=0.0, max_steps=300, log_every=100)


@pytest.fixture
def library(make_adapter, tasks, tmp_path):
    """The LoRAs of three tasks, of rank 4."""
    adapters = {task.name: make_adapter(seed, rank=4) for seed, task in enumerate(tasks)}
    save_adapters(tmp_path / "loras", adapters, {task.name: [task] for task in tasks})
    return pack(tmp_path / "loras", tmp_path / "library.safetensors")


def random_heads(hyperlora: HyperLoRA) -> HyperLoRA:
    """Heads that are not at their start, zero."""
    torch.manual_seed(1)
    for head in hyperlora.network.heads.values():
        torch.nn.init.normal_(head.weight, std=0.05)
    return hyperlora


def plain_loss(hyperlora: HyperLoRA, library, inputs: torch.Tensor, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and error of all targets at once, from the adapters that `hyperlora` generates, ΔW being formed."""
    means, deviations = library.statistics()
    losses, found = [], []
    for module, (A, B) in hyperlora.factors(inputs).items():
        target_A, target_B = library.read(module, slice(0, library.num_layers), range(len(library)))
        if loss == "factors":
            for mine, target, mean, std in zip(
                (A, B), (target_A, target_B), means[module], deviations[module], strict=True
            ):
                losses.append(((mine - mean) / std - (target - mean) / std).abs().flatten())
                found.append((mine - target).abs().flatten())
        else:
            delta, target = library.scale * B @ A, library.scale * target_B.to(A) @ target_A.to(A)
            norms = torch.linalg.matrix_norm(target).square().mean(0).sqrt()
            losses.append((torch.linalg.matrix_norm(delta - target) / norms).flatten())
            found.append((delta - target).square().mean((-1, -2)).sqrt().flatten())
    return torch.cat(losses).mean(), torch.cat(found).mean()


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("loss", ["factors", "delta"])
@pytest.mark.parametrize("head", ["L", "M", "S"])
@pytest.mark.parametrize("piece", [1, 1500, 2**24])
def test_loss_and_gradients_in_pieces_are_those_of_plain_autograd(library, head, loss, piece):
    """In float64; a piece is one layer of one LoRA, several LoRAs, or all there is."""
    hyperlora = random_heads(build(library, ReconConfig(head=head, task_input="one_hot", dropout=0.0))).double()
    inputs = torch.eye(3, dtype=torch.float64)
    expected, expected_error = plain_loss(hyperlora, library, inputs, loss)
    (2 * expected).backward()
    expected_gradients = gradients(hyperlora)
    hyperlora.zero_grad()

    model = ReconModel(hyperlora, library, inputs, loss, piece).double()
    out = model(torch.arange(3), torch.arange(3), torch.tensor(3.0))
    (2 * out["loss"]).backward()
    # the library's ΔW norms, and so the scale of the loss, are float32
    torch.testing.assert_close((out["loss"], out["error"]), (expected, expected_error), rtol=1e-6, atol=0)
    found = gradients(hyperlora)
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    torch.testing.assert_close(found, expected_gradients, rtol=1e-5, atol=1e-9)
    with torch.no_grad():
        again = model(torch.arange(3), torch.arange(3), torch.tensor(3.0))
    torch.testing.assert_close(again["loss"], out["loss"])


@pytest.mark.parametrize("piece", [1500, 2**24])
@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_the_loss_of_the_public_code(library, head, piece):
    """Of each module the mean over A and over B, halved, of z-scores by the sample's deviation."""
    config = ReconConfig(head=head, task_input="one_hot", dropout=0.0, sample_deviation=True)
    hyperlora, expected = random_heads(build(library, config)), 0.0
    for module, (A, B) in hyperlora.factors(torch.eye(3)).items():
        for mine, target in zip((A, B), library.read(module, slice(0, 2), range(3)), strict=True):
            mean, std = target.mean(0), torch.std(target, dim=0)
            l1 = torch.nn.functional.l1_loss((mine - mean) / std, (target - mean) / std)
            expected = expected + l1 / 2 / len(library.target_modules)
    model = ReconModel(hyperlora, library, torch.eye(3), piece=piece, sides_apart=True)
    out = model(torch.arange(3), torch.arange(3), torch.tensor(3.0))
    torch.testing.assert_close(out["loss"], expected)


def test_one_lora_has_no_sample_deviation(library, tmp_path):
    one = pack(tmp_path / "loras", tmp_path / "one.safetensors", ["first"])
    with pytest.raises(UserError, match="needs more than 1 LoRAs: leave sample_deviation out"):
        build(one, ReconConfig(task_input="one_hot", sample_deviation=True))


def test_a_piece_never_holds_more_weights_than_it_may(library, monkeypatch):
    sizes, factors = [], HyperNetwork.factors

    def counted(self, module, features):
        A, B = factors(self, module, features)
        sizes.append(A.numel() + B.numel())
        return A, B

    monkeypatch.setattr(HyperNetwork, "factors", counted)
    model = ReconModel(build(library, ONE_HOT), library, torch.eye(3), piece=1100)
    model(torch.arange(3), torch.arange(3), torch.tensor(3.0))["loss"].backward()
    assert max(sizes) <= 1100 and sum(sizes) == 3 * model.elements


@pytest.mark.parametrize("loss", ["factors", "delta"])
def test_shares_of_two_processes_add_up_to_the_whole_step(library, loss):
    hyperlora = random_heads(build(library, ONE_HOT))
    model = ReconModel(hyperlora, library, torch.eye(3), loss)
    draws, found = Draws([[0], [1], [2]], 0), []
    for draws.process, draws.processes in ((0, 1), (0, 2), (1, 2)):
        hyperlora.zero_grad()
        model(**next(iter(draws)))["loss"].backward()
        found.append(gradients(hyperlora))
    whole, first, second = found
    mean = {name: (first[name] + second[name]) / 2 for name in whole}  # what DDP does
    torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)


def test_bfloat16_has_nearly_the_same_loss_and_gradients(library):
    hyperlora = random_heads(build(library, ONE_HOT))
    model = ReconModel(hyperlora, library, torch.eye(3), "delta", piece=1100)
    found = []
    for enabled in (False, True):
        hyperlora.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(torch.arange(3), torch.arange(3), torch.tensor(3.0))["loss"]
        loss.backward()
        found.append((loss.detach(), hyperlora.network.heads["q_proj"].weight.grad.clone()))
    (loss, gradient), (loss16, gradient16) = found
    torch.testing.assert_close(loss16, loss, rtol=1e-2, atol=0)
    assert torch.cosine_similarity(gradient.flatten(), gradient16.flatten(), dim=0) > 0.99


def test_at_step_0_every_adapter_is_the_average(library):
    hyperlora = build(library, ONE_HOT)
    for adapter in hyperlora.generate(embeddings=torch.eye(3)):
        for module, (A, B) in adapter.weights.items():
            targets = library.read(module, slice(0, 2), range(3))
            torch.testing.assert_close((A, B), (targets[0].mean(0), targets[1].mean(0)))


def test_the_z_scores_of_the_targets_give_the_targets(library):
    hyperlora = build(library, ONE_HOT)
    targets = {m: library.read(m, slice(0, 2), range(3)) for m in library.target_modules}
    means, deviations = library.statistics()
    scores = {
        module: tuple((x - mean) / std for x, mean, std in zip(sides, means[module], deviations[module], strict=True))
        for module, sides in targets.items()
    }
    hyperlora.network.forward = lambda _: scores
    torch.testing.assert_close(hyperlora.factors(torch.eye(3)), targets)


@pytest.mark.parametrize(("head", "loss"), [("L", "factors"), ("M", "factors"), ("S", "factors"), ("M", "delta")])
def test_a_small_library_is_reconstructed(library, head, loss, tmp_path):
    config = ReconConfig(**vars(ONE_HOT) | {"head": head, "loss": loss})
    hyperlora = build(library, config)
    start = errors(hyperlora, library, torch.eye(3), loss).mean()
    log = train(hyperlora, library, config, tmp_path / "out")
    assert log[0]["error"] > log[-2]["error"] > 0  # the last line is the run's own
    report = json.loads((tmp_path / "out" / "recon.json").read_text())
    assert [target["name"] for target in report["targets"]] == ["first", "second", "both"]
    assert report["error" if loss == "factors" else "delta_error"] < 0.05 * start

    loaded = HyperLoRA.from_pretrained(tmp_path / "out")
    for row, adapter in enumerate(loaded.generate(embeddings=torch.eye(3))):
        for module in library.target_modules:
            A, B = library.read(module, slice(0, 2), [row])
            for layer in range(2):
                target = library.scale * B[0, layer] @ A[0, layer]
                assert (adapter.delta_w(module, layer) - target).norm() < 0.15 * target.norm()


def test_the_error_reported_is_that_of_the_saved_adapters(library, tasks, embedder, tmp_path):
    """With dropout and two descriptions a task, of which the first counts."""
    config = ReconConfig(max_steps=3, embedder="words")
    hyperlora = build(library, config, tasks, embedder)
    train(hyperlora, library, config, tmp_path / "out", tasks)
    report = json.loads((tmp_path / "out" / "recon.json").read_text())
    loaded = HyperLoRA.from_pretrained(tmp_path / "out")
    loaded.embedder = embedder
    assert loaded.descriptions == [text for task in tasks for text in task.descriptions]
    for row, task in enumerate(tasks):
        [adapter] = loaded.generate(task.descriptions[0])
        targets = {module: library.read(module, slice(0, 2), [row]) for module in library.target_modules}
        differences = [
            (x - y[0]).flatten() for m in targets for x, y in zip(adapter.weights[m], targets[m], strict=True)
        ]
        assert report["targets"][row]["error"] == pytest.approx(torch.cat(differences).abs().mean().item(), rel=1e-4)
        places = [
            (adapter.delta_w(m, layer) - library.scale * B[0, layer] @ A[0, layer]).square().mean().sqrt()
            for m, (A, B) in targets.items()
            for layer in (0, 1)
        ]
        assert report["targets"][row]["delta_error"] == pytest.approx(torch.stack(places).mean().item(), rel=1e-3)


def test_every_target_comes_once_a_round_with_descriptions_of_its_own():
    choices = [[10 * target + i for i in range(4)] for target in range(5)]
    draws, whole = Draws(choices, 2, seed=3), []
    for _, batch in zip(range(50), draws, strict=False):
        assert (batch["index"] // 10 == batch["targets"]).all()
        whole.append((batch["targets"].tolist(), batch["index"].tolist()))
    for first in range(0, 50, 5):  # five steps are two rounds
        counts = torch.bincount(torch.tensor([t for targets, _ in whole[first : first + 5] for t in targets]))
        assert counts.tolist() == [2] * 5
    assert {i for _, index in whole for i in index} == {i for part in choices for i in part}
    later = next(iter(Draws(choices, 2, seed=3, start=7)))
    assert (later["targets"].tolist(), later["index"].tolist()) == whole[7]
    assert next(iter(Draws(choices, 0)))["targets"].tolist() == [0, 1, 2, 3, 4]


def test_a_killed_run_resumes_to_the_losses_of_one_that_was_not(library, tasks, embedder, tmp_path, monkeypatch):
    """With dropout, descriptions and not all targets a step; killed in step 7, with a checkpoint of step 4."""
    config = ReconConfig(max_steps=10, targets_per_step=2, save_every=4, log_every=1, embedder="words")

    def losses(output, resume=False):
        log = train(build(library, config, tasks, embedder), library, config, output, tasks, resume)
        return [(line["loss"], line["error"]) for line in log if "loss" in line]

    whole, forward = losses(tmp_path / "whole"), ReconModel.forward

    def killed(self, *args, **kwargs):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 7:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ReconModel, "forward", killed)
        losses(tmp_path / "killed")
    assert not (tmp_path / "killed" / "hyperlora.safetensors").exists()
    assert losses(tmp_path / "killed", resume=True) == whole
    assert math.isfinite(whole[-1][0]) and len(whole) == 10


def test_a_run_is_resumed_with_its_own_loras(library, tasks, tmp_path):
    config = ReconConfig(task_input="one_hot", max_steps=2, save_every=1)
    train(build(library, config), library, config, tmp_path / "out")
    with pytest.raises(UserError, match="holds an earlier run"):
        train(build(library, config), library, config, tmp_path / "out")
    adapters = load_adapters(tmp_path / "loras")
    adapters["first"].weights["q_proj"][0][0] += 1  # trained again
    save_adapters(tmp_path / "loras", adapters, {})
    again = pack(tmp_path / "loras", tmp_path / "again.safetensors")
    with pytest.raises(UserError, match="was trained with weights of the LoRAs"):
        train(build(again, config), again, config, tmp_path / "out", resume=True)
    fewer = pack(tmp_path / "loras", tmp_path / "fewer.safetensors", ["first", "both"])
    with pytest.raises(UserError, match="was trained with library '3 LoRAs"):
        train(build(fewer, config), fewer, config, tmp_path / "out", resume=True)


def test_entries_that_never_vary_are_kept(make_adapter, tasks, tmp_path):
    """One LoRA alone, and one whose B is zero, as it starts: no deviation to divide by."""
    adapter = make_adapter(1)
    for name in ("one", "two"):
        adapter.weights["q_proj"][1].zero_()
        adapter.save_pretrained(tmp_path / "loras" / name)
    library = pack(tmp_path / "loras", tmp_path / "library.safetensors")
    for loss in ("factors", "delta"):
        hyperlora = random_heads(build(library, ONE_HOT))
        model = ReconModel(hyperlora, library, torch.eye(2), loss)
        model(torch.arange(2), torch.arange(2), torch.tensor(2.0))["loss"].backward()
        assert all(p.grad.isfinite().all() for p in hyperlora.parameters())
        assert errors(hyperlora, library, torch.eye(2), loss).max() < 1e-6


def test_a_lora_without_descriptions_is_named(library, tasks, embedder):
    with pytest.raises(UserError, match="LoRA of the task second has no descriptions"):
        build(library, ReconConfig(), [tasks[0], tasks[2]], embedder)


def test_a_package_that_draws_losses_must_be_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else "there")
    with pytest.raises(UserError, match="pip install tensorboard"):
        main(["--adapters", "nowhere", "--output", "nowhere", "--report_to", "tensorboard"])


def test_the_command_line_reconstructs_the_loras_of_some_tasks(library, tasks, tmp_path):
    for task in tasks[:2]:
        task.save(tmp_path / "tasks")
    folders = ["--adapters", f"{tmp_path / 'loras'}", "--output", f"{tmp_path / 'out'}"]
    with pytest.raises(UserError, match="--tasks"):
        main(folders)
    steps = ["--max_steps", "2", "--head", "S", "--task_input", "learned", "--learned_size", "8"]
    main([*folders, *steps, "--tasks", f"{tmp_path / 'tasks'}"])
    loaded = HyperLoRA.from_pretrained(tmp_path / "out")
    assert loaded.config.z_score and loaded.config.num_tasks == 2
    assert len(loaded.generate(embeddings=torch.arange(2))) == 2


def test_a_run_is_resumed_with_its_own_descriptions(library, tasks, embedder, tmp_path):
    config = ReconConfig(max_steps=2, save_every=1, embedder="words")
    train(build(library, config, tasks, embedder), library, config, tmp_path / "out", tasks)
    other = [replace(tasks[0], descriptions=["Said in other words."]), *tasks[1:]]
    with pytest.raises(UserError, match="was trained with descriptions"):
        train(build(library, config, other, embedder), library, config, tmp_path / "out", other, resume=True)


def test_the_settings_of_the_public_code_are_taken():
    config = Path(__file__).parents[2] / "training" / "configs" / "public-recon.yaml"
    options = parse(Options, ["--config", str(config), "--adapters", "A", "--output", "O"])
    assert options.sides_apart and options.sample_deviation and options.targets_per_step == 4


def test_the_shipped_settings_are_the_papers():
    """All but what a base of 7B needs are the defaults."""
    config = Path(__file__).parents[2] / "training" / "configs" / "recon-mistral-7b.yaml"
    options = parse(Options, ["--config", str(config), "--adapters", "A", "--output", "O"])
    usual = parse(Options, ["--adapters", "A", "--output", "O", "--embedder", options.embedder])
    assert options == replace(usual, device="cuda", targets_on_device=True, piece=options.piece)
