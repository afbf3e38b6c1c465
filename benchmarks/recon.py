"""One step of reconstruction at Mistral-7B's shapes: the loss in pieces against all weights at once.

Both have the same loss and take the same targets, random LoRAs in a mapped file. Memory is the most that a step adds,
the optimizer's state left out.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.hypernetwork import D_EMB, LAYERS, TARGETS
from benchmarks.measure import add_device, added_mb, medians, parser, print_table
from hyperlora.config import HyperLoRAConfig
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training.parts.library import Library, write_library
from training.recon import PIECE, ReconModel

RANK, AT_ONCE = 8, 2**62


def random_loras(count: int, device: str) -> Iterator[Adapter]:
    """Drawn on the device, given on the CPU."""

    def draw(*size: int) -> Tensor:
        return (torch.randn(size, device=device) / 64).cpu()

    for _ in range(count):
        sides = {m: (draw(LAYERS, RANK, i), draw(LAYERS, o, RANK)) for m, (i, o) in TARGETS.items()}
        yield Adapter(sides, alpha=16.0, use_rslora=True)


def make_model(library: Library, head: str, loss: str, piece: int, device: str) -> ReconModel:
    config = HyperLoRAConfig(head, dict(library.target_modules), library.num_layers, d_emb=D_EMB, z_score=True)
    hyperlora = HyperLoRA(config)
    for linear in hyperlora.network.heads.values():
        torch.nn.init.normal_(linear.weight, std=0.02)
    hyperlora.set_z_score(*library.statistics())
    return ReconModel(hyperlora, library, torch.randn(len(library), D_EMB), loss, piece).to(device)


def make_step(model: ReconModel, device: str, bf16: bool) -> Callable[[], float]:
    """Forward, backward and Adam over all targets; gives the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    every = torch.arange(len(model.library), device=device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(every, every, torch.tensor(float(len(every)), device=device))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def main() -> None:
    options = parser(__doc__, repetitions=1)
    options.add_argument("--targets", type=int, default=16, help="LoRAs in the library, all in each step (default: 16)")
    options.add_argument("--loss", choices=("factors", "delta"), default="factors", help="L1 on z-scores, or dW's norm")
    options.add_argument("--heads", default="LMS", help="which heads (default: LMS)")
    options.add_argument("--piece", type=int, default=PIECE, help=f"weights compared at once (default: {PIECE})")
    options.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    add_device(options)  # which holds all targets
    args = options.parse_args()
    torch.set_float32_matmul_precision("high")  # as in training.recon: TF32 on a GPU that has it
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.safetensors"
        write_library(
            path, {f"task{i}": f"task{i}" for i in range(args.targets)}, random_loras(args.targets, args.device)
        )
        library = Library(path).to(args.device)
        for head in args.heads:
            seconds, memory, losses = {}, {}, []
            for way, piece in (("pieces", args.piece), ("at once", AT_ONCE)):
                torch.manual_seed(0)
                step = make_step(make_model(library, head, args.loss, piece, args.device), args.device, args.bf16)
                losses.append(step())  # warm: the optimizer's state is there
                memory[way] = added_mb(step, args.device)
                seconds |= medians({way: step}, args.repetitions)
            torch.testing.assert_close(*losses, rtol=1e-2 if args.bf16 else 1e-3, atol=0)
            speed = args.targets * sum(map(sum, TARGETS.values())) * RANK * LAYERS * 4 / seconds["pieces"] / 1e9
            rows.append(
                [f"head {head}, {args.targets} targets"]
                + [f"{value:,.2f}" for value in (seconds["pieces"], seconds["at once"], speed)]
                + [f"{memory['pieces']:,.0f}", f"{memory['at once']:,.0f}"]
            )
    columns = ["s in pieces", "s at once", "targets' GB/s", "MB in pieces", "MB at once"]
    print_table(["one step", *columns], rows)


if __name__ == "__main__":
    main()
