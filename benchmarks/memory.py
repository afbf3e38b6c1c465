"""What a base model, a hypernetwork and 64 adapters hold, and the most that starting with them takes.

Each way runs in a process of its own and reads the same random files: a base in bfloat16 and a hypernetwork with head
L, the largest. The embedder is left out. The alternative is transformers, with the base model alone.
"""

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.measure import held_mb, parser, print_table, resident_mb, synchronize
from benchmarks.real_shapes import TARGETS, add_shape, chosen_shape
from benchmarks.rehearsal import INDEX, write_base
from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import HyperLoRAConfig
from hyperlora.generator import HyperLoRA
from hyperlora.memory import BaseShape

ADAPTERS, ROWS = 64, 16
GOAL = 1200  # MB above the base


def write_hyperlora(folder: Path, shape: BaseShape) -> None:
    HyperLoRA(HyperLoRAConfig("L", shape.targets(TARGETS), shape.layers, d_emb=1024)).save_pretrained(folder)


def read(model: PreTrainedModel) -> None:
    """Weights that are mapped from a file are in memory only once they have been read."""
    for weight in model.parameters():
        weight.detach().sum()


def transformers_alone(folder: Path, device: str) -> Iterator[str]:
    yield "transformers: imports"
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).to(device)
    read(model)
    yield "transformers: the base"


def ours(folder: Path, device: str) -> Iterator[str]:
    yield "HyperLoRA: imports"
    model, _ = load_base(folder / "base", dtype=torch.bfloat16, device=device)
    read(model)
    yield "HyperLoRA: the base"
    hyperlora = HyperLoRA.from_pretrained(folder / "hyperlora").to(device)
    adapted = AdaptedModel(model, hyperlora.config.target_modules, ADAPTERS)
    yield "and a hypernetwork"
    slots = [adapted.load(hyperlora.generate(embeddings=torch.randn(1, 1024))[0]) for _ in range(ADAPTERS)]
    yield f"and {ADAPTERS} adapters"
    with adapted.use(slots[:ROWS]):
        yield f"and {ROWS} of them gathered for a batch"


def stages(way: str, folder: Path, device: str) -> list[tuple[str, float, float, float]]:
    """Each stage of one way with what the device holds then, and it and the host at most until then, in MB."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    if device != "cpu":
        torch.zeros(1, device=device)  # the GPU's counters begin
    found = []
    for stage in {"transformers": transformers_alone, "ours": ours}[way](folder, device):
        synchronize()
        found.append((stage, held_mb(device), held_mb(device, peak=True), resident_mb(field="VmHWM")))
    return found


def in_a_process(way: str, folder: Path, device: str) -> list[tuple[str, float, float, float]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(stages, way, folder, device).result()


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    add_shape(options, "mistral-7b", layers=2)
    args = options.parse_args(argv)
    shape = chosen_shape(args)
    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder) / "base", shape, device=args.device)
        write_hyperlora(Path(folder) / "hyperlora", shape)
        base = json.loads((Path(folder) / "base" / INDEX).read_text())["metadata"]["total_size"] / 1e6
        found = {way: in_a_process(way, Path(folder), args.device) for way in ("transformers", "ours")}
    rows = []
    for way in found.values():
        _, imports, _, _ = way[0]
        for stage, held, peak, host in way:
            above = f"{held - imports - base:,.0f}" if stage != way[0][0] else "-"
            rows.append([stage, f"{held:,.0f}", above, f"{peak:,.0f}", f"{(peak - imports) / base:.2f} x"])
            if args.device != "cpu":
                rows[-1].append(f"{host:,.0f}")
    columns = ["MB held", "above the weights", "peak", "of the weights", *["host's peak"] * (args.device != "cpu")]
    print_table([f"{args.shape}, {shape.layers} layers: {base:,.0f} MB", *columns], rows)
    _, alone, *_ = found["transformers"][-1]
    held = {stage: held for stage, held, *_ in found["ours"]}[f"and {ADAPTERS} adapters"]
    if any(stage[1] - way[0][1] < base for way in found.values() for stage in way[1:]):
        raise SystemExit("\nParts of the mapped base were taken back, which then count as saved: free some memory.")
    print(f"\nBeyond transformers with the base: {held - alone:,.0f} MB; the goal is {GOAL:,} MB at most.")


if __name__ == "__main__":
    main()
