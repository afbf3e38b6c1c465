"""Muon for the matrices and AdamW for the rest, as one optimizer that the Trainer can drive."""

from collections.abc import Iterable

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Muon for `matrices`, [out, in] weights of linear layers, and AdamW for the other parameters of `model`.

    Muon's steps are scaled to the size of AdamW's, so that one learning rate serves both.
    """

    def __init__(self, model: nn.Module, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        matrices = list(matrices)
        ids = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
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
