"""Muon and AdamW as one optimizer: which parameters each has, and that a resumed run goes on the same."""

import copy

import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from training.parts.muon import Muon, MuonAdamW


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, schedule, count: int) -> list[float]:
    ids, losses = torch.arange(5), []
    for _ in range(count):
        loss = nn.functional.cross_entropy(model(ids), ids.flip(0))
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def made(model: nn.Sequential) -> tuple[MuonAdamW, object]:
    optimizer = MuonAdamW(model, [model[1].weight, model[3].weight], lr=0.05)
    return optimizer, get_linear_schedule_with_warmup(optimizer, 2, 40)


def test_every_parameter_is_trained_once_and_the_loss_falls():
    model = small()
    optimizer, schedule = made(model)
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    losses = steps(model, optimizer, schedule, 20)
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_scheduler_sets_the_rate_of_both_parts():
    model = small()
    optimizer, schedule = made(model)
    steps(model, optimizer, schedule, 1)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.025}


def test_a_resumed_run_goes_on_as_one_that_never_stopped():
    model = small()
    optimizer, schedule = made(model)
    steps(model, optimizer, schedule, 5)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    expected = steps(model, optimizer, schedule, 5)

    again = small()
    optimizer, schedule = made(again)
    for part, saved in zip((again, optimizer, schedule), state, strict=True):
        part.load_state_dict(saved)
    assert steps(again, optimizer, schedule, 5) == expected


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_muon_steps_as_pytorchs_does(shape):
    """PyTorch's orthogonalises in bfloat16, of 8 bits, several products deep: hence the tolerance."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([ours], lr=0.1, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert expected.norm() > 0.1 and (moved - expected).norm() < 0.03 * expected.norm()
