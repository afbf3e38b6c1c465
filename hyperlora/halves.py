"""float32 linears that read half as many bytes on a CPU: weights rounded to float16, products and sums in float32.

A token of one chat reads all weights, so that their size is its time. The kernels are FBGEMM's, in PyTorch for x86.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST = torch.finfo(torch.float16).max


class _Halved:
    """The forward of a linear, with its weight also in float16, packed as the kernels read it."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), linear.bias)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


def halve_linears(model: nn.Module) -> None:
    """Let the float32 linears of `model` that are on the CPU compute so, wherever no gradients are asked for.

    Their weights stay as they are, beside the halves. Nothing changes where PyTorch lacks these kernels, as on ARM.
    """
    for linear in model.modules():
        if type(linear) is not nn.Linear or "forward" in vars(linear):  # accelerate's, which brings in its weight
            continue
        weight = linear.weight
        if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.abs().max() <= MOST:
            try:
                linear.forward = _Halved(linear)
            except RuntimeError:
                return


def whole_linears(model: nn.Module) -> None:
    """Let the linears of `model` compute as before `halve_linears`, wherever they are put."""
    for linear in model.modules():
        if isinstance(vars(linear).get("forward"), _Halved):
            del linear.forward


def packed_weights(model: nn.Module) -> list[object]:
    """What the halved linears of `model` compute with, which tracing has to be told of."""
    return [forward.packed for module in model.modules() if isinstance(forward := module.forward, _Halved)]
