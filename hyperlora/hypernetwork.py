"""The hypernetwork (Eq. 3): a task in, a LoRA's A and B for every target module and layer out.

The backbone is Figure 8, the A/B and rank embeddings are Figure 9, the heads L, M and S are §3.1; R is the public
implementation's. Only tensors in and out.
"""

import math

import torch
from torch import Tensor, nn

from hyperlora.config import HyperLoRAConfig
from hyperlora.errors import UserError

Factors = dict[str, tuple[Tensor, Tensor]]
"""Module name -> (A [n, layers, r, d_in], B [n, layers, d_out, r]) of n adapters."""


class HyperNetwork(nn.Module):
    """h_θ of Eq. 3. With the config's default sizes its parameter counts are the paper's (App. C) where `head_start` is
    zero. Shapes below are named after the config's fields: `latent` is its latent_size, `head` its head_size."""

    def __init__(self, config: HyperLoRAConfig) -> None:
        super().__init__()
        self.config = config
        modules, r, p = config.target_modules, config.rank, config.dropout
        if taken := [module for module in modules if hasattr(nn.ModuleDict(), module)]:
            raise UserError(f"A target module cannot be called {taken[0]!r}; check the config.")
        if config.task_input == "learned":
            self.task_vectors = nn.Embedding(config.num_tasks, config.d_emb)
        task, site = config.latent_size // 2, config.latent_size // 4
        latent = task + 2 * site  # Fig. 8: what is known of the task, the module and the layer, side by side
        self.task_encoder = nn.Sequential(nn.Linear(config.d_emb, task), nn.LayerNorm(task))
        self.module_encoder = nn.Sequential(nn.Embedding(len(modules), site), nn.LayerNorm(site))
        self.layer_encoder = nn.Sequential(nn.Embedding(config.num_layers, site), nn.LayerNorm(site))
        self.mlp0 = nn.Sequential(*_mlp(latent, latent, p), nn.Dropout(p))
        self.mlp1 = nn.Sequential(nn.LayerNorm(latent), *_mlp(latent, latent, p), nn.Dropout(p))
        self.mlp2 = nn.Sequential(nn.LayerNorm(latent), *_mlp(latent, latent, p), nn.Dropout(p))
        self.mlp3 = nn.Sequential(nn.LayerNorm(latent), *_mlp(latent, config.head_size, p))
        if config.head in ("M", "S"):
            self.ab_embedding = nn.Parameter(torch.randn(len(modules), 2, latent))
            self.ab_norm = nn.LayerNorm(latent)  # Fig. 9 does not draw it, but the paper's counts hold only with it
        if config.head in ("S", "R"):
            self.rank_encoder = nn.Sequential(nn.Embedding(r, latent), nn.LayerNorm(latent))

        widths = {m: _head_width(config.head, r, *sizes) for m, sizes in modules.items()}
        self.heads = nn.ModuleDict({m: nn.Linear(config.head_size, width, bias=False) for m, width in widths.items()})
        for head in self.heads.values():
            nn.init.zeros_(head.weight)  # step 0 is the offset, or the basis, exactly
        if config.head_start == "peft":
            self.basis_A = nn.ParameterDict({m: _kaiming(r, d_in) for m, (d_in, _) in modules.items()})
            self.basis_B = nn.ParameterDict({m: torch.zeros(d_out, r) for m, (_, d_out) in modules.items()})

    def forward(self, task_input: Tensor) -> Factors:
        """All adapters of a batch of tasks, in one pass.

        `task_input`: [n, d_emb] floats (embeddings or one-hot), or [n] int64 ids where the task vectors are learned.
        Gives module name -> (A [n, layers, r, d_in], B [n, layers, d_out, r]): z-scores where the config says so, and
        without the offset. Raises `UserError` where the input has another size.
        """
        features = self.features(task_input)
        return {m: self.factors(m, features[:, i]) for i, m in enumerate(self.config.target_modules)}

    def encode(self, task_input: Tensor) -> Tensor:
        """The task encoder's output, [n, latent / 2]."""
        learned = self.config.task_input == "learned"
        if task_input.ndim != (1 if learned else 2) or not (learned or task_input.shape[1] == self.config.d_emb):
            wanted = "[n] task ids" if learned else f"[n, {self.config.d_emb}]"
            raise UserError(f"The task input has shape {list(task_input.shape)}; this hypernetwork takes {wanted}.")
        return self.task_encoder(self.task_vectors(task_input) if learned else task_input)

    def features(self, task_input: Tensor) -> Tensor:
        """What the heads see, the last block's output: [n, modules, layers, head]; M [.., 2, head]; S [.., 2, r, head];
        R [.., r, head]."""
        config, task = self.config, self.encode(task_input)
        module, layer = _every(self.module_encoder), _every(self.layer_encoder)  # [modules, site], [layers, site]
        each = (len(task), len(module), len(layer), -1)
        phi = [task[:, None, None].expand(each), module[:, None].expand(each), layer.expand(each)]
        phi = torch.cat(phi, dim=-1)  # Eq. 3: [n, modules, layers, latent]

        x = self.mlp0(phi)
        x = x + self.mlp1(x)
        if config.head in ("M", "S"):
            x = x.unsqueeze(-2) + self.ab_norm(self.ab_embedding)[:, None]  # [n, modules, layers, 2, latent]
        elif config.head == "R":
            x = x.unsqueeze(-2) + _every(self.rank_encoder)  # [n, modules, layers, r, latent]
        x = x + self.mlp2(x)
        if config.head == "S":
            rank = _every(self.rank_encoder)
            if config.rank_embedding == "through_mlp2":
                rank = rank + self.mlp2(rank)
            x = x.unsqueeze(-2) + rank  # [n, modules, layers, 2, r, latent]
        return self.mlp3(x)

    def factors(self, module: str, features: Tensor) -> tuple[Tensor, Tensor]:
        """One module's A [n, layers, r, d_in] and B [n, layers, d_out, r] from its features [n, layers, .., head]."""
        # As one product: a linear on a strided slice becomes many small ones.
        A, B = self.split(module, self.heads[module](features.flatten(0, -2)).unflatten(0, features.shape[:-1]))
        if self.config.head_start == "peft":
            A, B = A + self.basis_A[module], B + self.basis_B[module]
        return A, B

    def split(self, module: str, out: Tensor) -> tuple[Tensor, Tensor]:
        """A [n, layers, r, d_in] and B [n, layers, d_out, r] of what the module's head gave, [n, layers, .., width]."""
        (d_in, d_out), r = self.config.target_modules[module], self.config.rank
        if self.config.head == "L":
            A, Bt = out.split([r * d_in, r * d_out], dim=-1)
            A, Bt = A.unflatten(-1, (r, d_in)), Bt.unflatten(-1, (r, d_out))
        elif self.config.head == "R":
            A, Bt = out.split([d_in, d_out], dim=-1)
        else:
            A, Bt = (out.unflatten(-1, (r, -1)) if self.config.head == "M" else out).unbind(2)
            A, Bt = A[..., :d_in], Bt[..., :d_out]  # a shared row is cut to the size needed
        return A, Bt.mT


def _mlp(d_in: int, d_out: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(d_in, 4 * d_in), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * d_in, d_out), nn.SiLU()]


def _head_width(head: str, r: int, d_in: int, d_out: int) -> int:
    """Values that a head gives at once (App. C); M and S share theirs between A and B, so the wider one decides."""
    return {"L": r * (d_in + d_out), "M": r * max(d_in, d_out), "S": max(d_in, d_out), "R": d_in + d_out}[head]


def _every(encoder: nn.Sequential) -> Tensor:
    """All entries of an embedding, through its LayerNorm."""
    embedding, norm = encoder
    return norm(embedding.weight)


def _kaiming(r: int, d_in: int) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(r, d_in), a=math.sqrt(5))  # PEFT's start of A
