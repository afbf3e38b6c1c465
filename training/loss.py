"""The loss on answers, and NEFTune's noise: what every stage that trains through the base model shares."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.integrations.neftune import neftune_post_forward_hook

from training.tasks import IGNORE


def answer_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each answer token, float32 [b, k]; 0 where there is no label (mean: `mean_loss`).

    input_ids, labels: int64 [b, t], right-padded: causal attention never looks right, so no mask is needed. The model
    computes its own logits, soft-caps and all, at the k positions before any row's answer token only.
    """
    positions = (labels[:, 1:] != IGNORE).any(0).nonzero()[:, 0]
    logits = model(input_ids=input_ids, logits_to_keep=positions, use_cache=False).logits.float()
    targets = labels[:, positions + 1]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)


def mean_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean over the answer tokens of the batch."""
    return answer_loss(model, input_ids, labels).sum() / (labels[:, 1:] != IGNORE).sum()


@contextmanager
def training_mode(model: PreTrainedModel, neftune_alpha: float = 0.0) -> Iterator[None]:
    """Inside, the model is in training mode and its token embeddings get NEFTune's noise where alpha is above 0.

    On a CPU its attention is the plain one: PyTorch's fused one is slower backward, above all in bfloat16.
    """
    embeddings, was_training = model.get_input_embeddings(), model.training
    handle, attention = None, model.config._attn_implementation
    if embeddings.weight.device.type == "cpu":
        model.set_attn_implementation("eager")
    if neftune_alpha > 0:
        embeddings.neftune_noise_alpha = neftune_alpha
        handle = embeddings.register_forward_hook(neftune_post_forward_hook)
    model.train()
    try:
        yield
    finally:
        model.train(was_training)
        model.set_attn_implementation(attention)
        if handle:
            handle.remove()
