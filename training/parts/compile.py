"""torch.compile for a frozen base: its layers one by one, where that is worth its minutes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch._dynamo
import torch._inductor.config
import torch.fx.experimental._config
from torch import nn
from transformers import PreTrainedModel

from hyperlora.errors import UserError


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def pays(steps: int) -> bool:
    """Whether so many steps are worth the minute or two that compiling takes, and there is a compiler."""
    return steps >= 100 and has_compiler()


def layers_to_compile(model: PreTrainedModel) -> list[nn.Module]:
    """Those that transformers names. `UserError` where there is none, as in a base that is split over processes, or no
    compiler.
    """
    if not has_compiler():
        raise UserError("compile needs a C++ compiler (g++, or what CXX names): install one, or leave compile away.")
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    if not layers:
        raise UserError("compile finds no layers in this base model (or it is split over processes): leave it away.")
    return layers


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Inside, each layer of `model` is compiled when it first runs, once for all lengths of batches.

    Layer by layer: NEFTune's noise would break the graph of the whole. Raises what `layers_to_compile` does.
    """
    layers = layers_to_compile(model)
    limit = max(256, 8 * len(layers))  # 256 is PyTorch's own for all layers together
    limits = {"recompile_limit": limit, "accumulated_recompile_limit": limit}
    with (
        # All layers count as one that changes, since each has numbers of its own in the hooks of `AdaptedModel`; the
        # number of adapters, which comes from those hooks, is no fixed size, and not tied to that of rows.
        torch._dynamo.config.patch(**limits, force_nn_module_property_static_shapes=False),
        torch.fx.experimental._config.patch(use_duck_shape=False),
        # The numbers that dropout draws without compiling; on a CPU those of compiled code take much longer, too.
        torch._inductor.config.patch(fallback_random=True),
    ):
        for layer in layers:
            layer.compile(dynamic=True)
        try:
            yield
        finally:
            for layer in layers:
                layer._compiled_call_impl = None
