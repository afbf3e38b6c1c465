"""The loss on answers, and NEFTune's noise: what every stage that trains through the base model shares."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.integrations.neftune import neftune_post_forward_hook

from hyperlora.errors import UserError
from training.parts.batches import IGNORE
from training.parts.compile import compiled_layers, layers_to_compile


def answer_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each answer token, float32 [b, t - 1]; 0 where there is no label (mean: `mean_loss`).

    input_ids, labels: int64 [b, t], right-padded: causal attention never looks right, so no mask is needed. The model
    computes its own logits, soft-caps and all, at the places before an answer token only. label_smoothing: the part of
    each target that is spread over the whole vocabulary.
    """
    targets = labels[:, 1:]
    asked = targets != IGNORE
    head = model.get_output_embeddings().register_forward_pre_hook(lambda _, states: states[0][:, :-1][asked][None])
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits[0].float()  # [answer tokens, vocabulary]
    finally:
        head.remove()
    losses = cross_entropy(logits, targets[asked], reduction="none", label_smoothing=label_smoothing)
    return losses.new_zeros(targets.shape).masked_scatter(asked, losses)


def mean_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor, tokens: Tensor | int | None = None) -> Tensor:
    """Mean over the answer tokens of the batch, or the batch's part of a mean over `tokens` of them."""
    count = (labels[:, 1:] != IGNORE).sum() if tokens is None else tokens
    return answer_loss(model, input_ids, labels).sum() / count


def check_trainable(model: PreTrainedModel, recomputed: bool, compiled: bool) -> None:
    """Raise `UserError` where `training_mode` could not do what is asked, or the model would lose its gradient.

    A 4-bit one would at the first evaluation, with nothing but a warning: on a CPU with avx512_bf16, bitsandbytes
    (0.50) repacks a weight in the first forward outside training, for a kernel that has no backward, and never unpacks
    it.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu":
            raise UserError(
                "A 4-bit base model cannot be trained on this CPU: bitsandbytes repacks its weights at the first "
                "evaluation, and there is no gradient from then on. Load it in bfloat16, or use a GPU."
            )
    if compiled and recomputed:
        raise UserError("compile and gradient_checkpointing do not go together: leave one of them away.")
    if compiled:
        layers_to_compile(model)


@contextmanager
def training_mode(
    model: PreTrainedModel, neftune_alpha: float = 0.0, recomputing: Callable | None = None, compiled: bool = False
) -> Iterator[None]:
    """Inside, the model is in training mode and its token embeddings get NEFTune's noise where alpha is above 0.

    recomputing: `AdaptedModel.recomputing` for gradient checkpointing: a layer keeps its input alone and is computed
    again in the backward pass. On a CPU the attention is the plain one: PyTorch's fused one is slower backward, above
    all in bfloat16. compiled: each layer runs through torch.compile, which takes a minute or more at first. Raises what
    `check_trainable` does.
    """
    check_trainable(model, recomputing is not None, compiled)
    embeddings, was_training = model.get_input_embeddings(), model.training
    handle, attention = None, model.config._attn_implementation
    if embeddings.weight.device.type == "cpu":
        model.set_attn_implementation("eager")
    if neftune_alpha > 0:
        embeddings.neftune_noise_alpha = neftune_alpha
        handle = embeddings.register_forward_hook(neftune_post_forward_hook)
    if recomputing:
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": recomputing})
        model.disable_input_require_grads()  # what reentrant checkpointing alone would need
    model.train()
    try:
        with compiled_layers(model) if compiled else nullcontext():
            yield
    finally:
        model.train(was_training)
        model.set_attn_implementation(attention)
        if recomputing:
            model.activation_checkpointing_disable()
        if handle:
            handle.remove()
