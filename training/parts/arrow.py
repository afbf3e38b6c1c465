"""Arrow routing over a library of LoRAs (Ostapenko et al., 2024), as PEFT's `create_arrow_model` defines it.

At every target linear a token is compared with each LoRA's prototype, the input direction that its ΔW stretches most;
the outputs of the k best LoRAs are added, weighted by the softmax of their scores. No task description is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hyperlora.adapted import AdaptedModel
from hyperlora.errors import UserError
from hyperlora.lora import Adapter
from training.parts.answers import weights_digest
from training.parts.digest import value_digest


def prototypes(A: Tensor, B: Tensor) -> Tensor:
    """The leading right singular vector of B A, [layers, d_in] float32, for A [layers, r, d_in], B [layers, d_out, r].

    B A is never built: with Aᵀ = Q R it is Q times the leading eigenvector of R Bᵀ B Rᵀ, [r, r]. PEFT comes near the
    same vector with 15 power iterations from a random start. The sign is arbitrary, and so never used.
    """
    A, B = A.float(), B.float()
    Q, R = torch.linalg.qr(A.mT)
    _, vectors = torch.linalg.eigh(R @ (B.mT @ B) @ R.mT)  # in ascending order of their eigenvalues
    return (Q @ vectors[..., -1:]).squeeze(-1)


class Arrow:
    """A library of LoRAs that a base model's tokens are routed over, inside `use`.

    All LoRAs of a linear lie in one A [n·r, d_in] and one B [d_out, n·r]: two matrix products a forward, where PEFT
    also holds every LoRA's own output, [tokens, n, d_out] (16 GB for 489 LoRAs and 2,048 tokens of Mistral's q_proj).
    """

    def __init__(self, adapted: AdaptedModel, adapters: Sequence[Adapter], top_k: int = 3, temperature: float = 1.0):
        """`top_k` and `temperature` are PEFT's defaults. Raises UserError where the adapters differ in shape."""
        if not adapters:
            raise UserError("Arrow routing needs a library of adapters; there is none.")
        if top_k < 1 or temperature <= 0:
            raise UserError("Arrow routing needs a top_k of at least 1 and a temperature above 0.")
        for adapter in adapters:
            adapted.check_fit(adapter)
        if len({(adapter.rank, *sorted(adapter.weights)) for adapter in adapters}) > 1:
            raise UserError("Arrow routing needs adapters of one rank and of the same modules.")
        if len(styles := {adapter.prompt_style for adapter in adapters}) > 1:
            raise UserError("Arrow routing needs adapters that were trained with the same prompt_style.")
        [self.prompt_style] = styles
        self.digest = value_digest([top_k, temperature, *(weights_digest(adapter).hex() for adapter in adapters)])
        self.top_k, self.temperature = min(top_k, len(adapters)), temperature
        leading = {
            module: torch.stack([prototypes(*adapter.weights[module]) for adapter in adapters])
            for module in adapters[0].weights
        }
        self._sites: list[tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]] = []
        for module, layer, linear in adapted.linears():
            if module in leading:
                A = torch.cat([adapter.weights[module][0][layer] for adapter in adapters])
                B = torch.cat([adapter.weights[module][1][layer] * adapter.scale for adapter in adapters], dim=1)
                factors = (leading[module][:, layer].to(A.dtype), A, B)
                self._sites.append((linear, tuple(factor.to(linear.weight.device) for factor in factors)))

    @contextmanager
    def use(self) -> Iterator[None]:
        """Inside, every token of every row of any batch is routed; the base's weights are not touched."""
        hooks = [linear.register_forward_hook(partial(self._add, *factors)) for linear, factors in self._sites]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(
        self, leading: Tensor, A: Tensor, B: Tensor, linear: nn.Module, args: tuple[Tensor, ...], y: Tensor
    ) -> Tensor:
        """The hook of one linear: y [b, t, d_out] and the routed LoRAs' outputs, for the input x [b, t, d_in]."""
        x = args[0].to(A.dtype)
        scores = (x @ leading.T).abs()  # [b, t, n]
        best, chosen = scores.topk(self.top_k, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, chosen, (best / self.temperature).softmax(-1))
        hidden = (x @ A.T).unflatten(-1, (len(leading), -1)) * weights.unsqueeze(-1)  # [b, t, n, r]
        return (y + hidden.flatten(-2) @ B.T).to(y.dtype)
