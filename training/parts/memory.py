"""How many bytes and FLOPs the stages of training take, from shapes alone: what `hyperlora.memory` is for chatting.

Every part is an estimate of a step's peak in bytes. What backward keeps is counted tensor by tensor as PyTorch saves it
(a frozen linear keeps nothing, its LoRA keeps the input); tests hold it against measured allocations.
"""

from collections.abc import Sequence
from typing import Any

from hyperlora.memory import BYTES, OVERHEAD, BaseShape, HyperShape, Parts

ADAM = 16  # bytes a trained float32 parameter: itself, its gradient, AdamW's two moments


def head_rows(shape: HyperShape) -> int:
    """Rows that one adapter's heads compute, over all layers and modules."""
    each = {"L": 1, "M": 2, "S": 2 * shape.rank, "R": shape.rank}[shape.head]
    return shape.base.layers * len(shape.targets) * each


def head_flops(shape: HyperShape) -> float:
    """FLOPs of the heads' matrix products for one adapter."""
    widths = sum(head.out_features for head in shape.network.heads.values())
    return 2 * shape.head_size * head_rows(shape) / len(shape.targets) * widths


def network_saved(shape: HyperShape, n: int) -> float:
    """Bytes that a training pass over n tasks keeps for backward, up to what the heads read (float32)."""
    latent, inside = shape.latent_size, 4 * shape.latent_size

    def block(size: int, last: bool = False) -> int:
        """Inputs of the linears and of SiLU in float32, and a byte for each of a dropout's values."""
        return 4 * (latent + 2 * inside + size) + inside + (0 if last else size)

    early = shape.base.layers * len(shape.targets)
    wide = early * {"L": 1, "M": 2, "S": 2, "R": shape.rank}[shape.head]
    norm = 4 * latent
    total = early * (block(latent) * 2 + norm) + wide * (block(latent) + norm)
    total += head_rows(shape) * (block(shape.head_size, last=True) + norm + 4 * shape.head_size)
    return n * total


def layer_saved(base: BaseShape, targets: Sequence[str], rank: int, element: int, dropout: bool) -> float:
    """Bytes a token that one layer keeps for backward, with fused attention; `element`: bytes of an activation.

    Two norms keep a float32 copy of their input, attention keeps q, k, v and its output, the MLP three of its width. A
    target's LoRA keeps its input, which several targets share, but not after a dropout (its mask is one byte).
    """
    linears, h = base.linears, base.hidden
    q, kv = base.heads * base.head_dim, base.kv_heads * base.head_dim
    if dropout:
        inputs = sum((element + 1) * linears[name][0] for name in targets)
    else:
        shared = {"q_proj": "x", "k_proj": "x", "v_proj": "x", "gate_proj": "y", "up_proj": "y"}
        inputs = element * sum({shared.get(name, name): linears[name][0] for name in targets}.values())
    small = element * len(targets) * rank
    return 2 * 4 * h + element * (2 * q + 2 * kv) + 4 * base.heads + element * 3 * base.intermediate + inputs + small


def through_base(
    shape: HyperShape,
    rows: int,
    tokens: int,
    answers: int,
    dtype: str = "bfloat16",
    checkpointing: bool = False,
    dropout: bool = True,
    processes: int = 1,
    sharded: bool = False,
    bf16: bool = True,
) -> Parts:
    """A forward and backward through the frozen base, to the adapters of `rows` rows of `tokens` tokens.

    answers: positions of a row whose logits are computed. sharded: the base is split over the processes.
    """
    base, element = shape.base, 2 if bf16 else 4
    held = base.bytes(dtype)
    layer = base.layer_weights
    if sharded:
        held = held / processes + 2 * layer * BYTES[dtype]  # one layer is used while the next is gathered
    each = rows * tokens * layer_saved(base, shape.target_modules, shape.rank, element, dropout)
    cast = element * layer if bf16 and dtype == "float32" else 0  # autocast's copies of the weights are kept too
    if checkpointing:
        kept = base.layers * rows * tokens * element * base.hidden + each + cast
    else:
        kept = base.layers * (each + cast)
    # the gradients of one layer's widest part, and with few bits one linear's weights in bfloat16
    work = rows * tokens * element * 3 * base.intermediate
    if dtype in ("4bit", "8bit"):
        work += 2 * max(d_in * d_out for d_in, d_out in base.linears.values())
    return {
        "base": held,
        "kept for backward": kept,
        "work": work,
        "logits": 12.0 * rows * answers * base.vocab,  # float32: themselves, their log-softmax, a gradient
        # A and B of a row in the forward's precision, and their gradients there
        "factors": (2 * element + 4) * rows * shape.adapter,
    }


def sft(shape: HyperShape, rows: int, *args: Any, descriptions: int = 0, processes: int = 1, **kwargs: Any) -> Parts:
    """A step of Eq. 4 on one device, at most `rows` different descriptions in a pass; otherwise as `through_base`."""
    parts = through_base(shape, rows, *args, processes=processes, **kwargs)
    trained = ADAM + (4 if processes > 1 else 0) + 2  # DDP's buckets; autocast's bfloat16 copy
    parts["hypernetwork"] = trained * shape.parameters + network_saved(shape, rows)
    # float32: what the heads give, with the offset, scaled B, and the gradients of these
    parts["factors"] += 16.0 * rows * shape.adapter + 4 * shape.adapter
    parts["descriptions"] = (4.0 + 2.0) * descriptions * shape.d_emb
    return parts | {"overhead": OVERHEAD}


def lora(shape: HyperShape, loras: int, batch_size: int, *args: Any, **kwargs: Any) -> Parts:
    """A step of `loras` plain LoRAs trained together, `batch_size` rows each; otherwise as `through_base`."""
    parts = through_base(shape, loras * batch_size, *args, **kwargs)
    return parts | {"LoRAs": float(ADAM * loras * shape.adapter), "overhead": OVERHEAD}


def recon(shape: HyperShape, targets: int, piece: int = 2**24) -> Parts:
    """A step of Eq. 5 over `targets` LoRAs, compared in pieces of `piece` values; the library stays on the disk."""
    module = shape.base.layers * shape.rank * max(map(sum, shape.targets.values()))
    values = 4.0 * min(piece, targets * module)  # of one module at a time
    head = 4.0 * max(linear.weight.numel() for linear in shape.network.heads.values())
    return {
        "hypernetwork": float(ADAM * shape.parameters),
        "kept for backward": network_saved(shape, targets),
        "gradient of the features": 4.0 * shape.head_size * head_rows(shape) * targets,
        # what the head gives, targets, differences and their gradients; or, when these are gone, the head's gradient
        "a piece": max(4 * values, 2 * values + head),
        "mean and deviation": 2 * 4.0 * shape.adapter,
        "overhead": OVERHEAD,
    }


def forward_flops(base: BaseShape, rows: int, tokens: int, answers: int) -> float:
    """FLOPs of a forward pass: two a weight and token, causal attention's halves, logits where the answers are."""
    each = 2 * base.layers * (base.layer_weights + tokens * base.heads * base.head_dim)
    return float(rows * (tokens * each + answers * 2 * base.hidden * base.vocab))


def training_flops(
    shape: HyperShape, rows: int, tokens: int, answers: int, checkpointing: bool = False, generated: bool = True
) -> float:
    """FLOPs of forward and backward: a frozen weight has no gradient, so backward costs what forward does.

    generated: the adapters come from the hypernetwork, whose weights do have gradients.
    """
    passes = 3 if checkpointing else 2
    heads = 3 * rows * head_flops(shape) if generated else 0.0
    return passes * forward_flops(shape.base, rows, tokens, answers) + heads


def recon_flops(shape: HyperShape, targets: int) -> float:
    """FLOPs of a step over `targets` LoRAs; each piece of the heads' output is computed once, and has two gradients."""
    last_block = 2 * head_rows(shape) * 4 * shape.latent_size * (shape.latent_size + shape.head_size)
    return 3 * targets * (last_block + head_flops(shape))
