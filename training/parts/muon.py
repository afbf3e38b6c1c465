"""Muon for the matrices and AdamW for the rest, as one optimizer that the Trainer can drive."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose slope at 0 is as steep as can be (Keller Jordan)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal: every [out, in] matrix steps by about the same amount in all its directions.

    The update of `torch.optim.Muon` with `match_rms_adamw` (steps of the size of AdamW's), which orthogonalises in
    bfloat16: on a CPU without instructions for it, that takes fifty times as long as float32.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonal(p.grad.lerp(momentum, MOMENTUM))  # Nesterov's
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U Vᵀ of a matrix U S Vᵀ [m, n], by Newton-Schulz in its dtype: singular values between 0.5 and 1.5."""
    a, b, c = COEFFICIENTS
    X = matrix.mT if len(matrix) > matrix.shape[1] else matrix
    X = X / X.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = X @ X.mT
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if len(matrix) > matrix.shape[1] else X


class MuonAdamW(torch.optim.Optimizer):
    """Muon for `matrices`, [out, in] weights of linear layers, and AdamW for the other parameters of `model`.

    Muon's steps are scaled to the size of AdamW's, so that one learning rate serves both.
    """

    def __init__(self, model: nn.Module, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        matrices = list(matrices)
        ids = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
        self.parts = [
            Muon(matrices, lr, weight_decay),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        super().__init__([{"params": matrices, "lr": lr}, {"params": rest, "lr": lr}], {"lr": lr})
        # one set of groups: what a scheduler sets here is what the parts read
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
