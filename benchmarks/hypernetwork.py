"""One adapter at Mistral-7B shapes, from task embedding to all A and B: one batched pass against a loop over the sites.

The loop has the same weights and generates one module of one layer at a time. Beside both stand the heads' products
alone, which no way of generating escapes.
"""

import torch
from torch import Tensor

from benchmarks.measure import add_device, medians, parser, print_table
from hyperlora.config import HyperLoRAConfig
from hyperlora.hypernetwork import HyperNetwork

TARGETS = {"q_proj": (4096, 4096), "v_proj": (4096, 1024)}
LAYERS, D_EMB = 32, 1024


def site_by_site(network: HyperNetwork, task_input: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(A [1, 1, r, d_in], B [1, 1, d_out, r]) of each layer of each module, in that order."""
    head, rank = network.config.head, network.config.rank
    task = network.encode(task_input)[0]
    modules, layers, ranks = (
        torch.arange(count, device=task.device)
        for count in (len(network.config.target_modules), network.config.num_layers, rank)
    )
    sites = []
    for m, module in enumerate(network.config.target_modules):
        for layer in range(network.config.num_layers):
            site = network.module_encoder(modules[m]), network.layer_encoder(layers[layer])
            x = network.mlp0(torch.cat([task, *site]))
            x = x + network.mlp1(x)
            if head != "L":
                x = x + network.ab_norm(network.ab_embedding[m])
            x = x + network.mlp2(x)
            if head == "S":
                x = x[:, None] + network.rank_encoder(ranks)
            sites.append(network.factors(module, network.mlp3(x)[None, None]))
    return sites


def make_network(head: str) -> HyperNetwork:
    """Random, also where training starts at zero."""
    config = HyperLoRAConfig(head, dict(TARGETS), num_layers=LAYERS, d_emb=D_EMB, offset="factors")
    network = HyperNetwork(config).eval()
    for linear in network.heads.values():
        torch.nn.init.normal_(linear.weight, std=0.02)
    return network


def compare(network: HyperNetwork, dtype: torch.dtype, device: str, repetitions: int) -> list[str]:
    """The table's row for one network in one dtype."""
    network.to(device, dtype)
    task_input = torch.randn(1, D_EMB, device=device, dtype=dtype)
    features = {module: x.flatten(0, -2) for module, x in zip(TARGETS, network.features(task_input)[0], strict=True)}
    seconds = medians(
        {
            "ours": lambda: network(task_input),
            "loop": lambda: site_by_site(network, task_input),
            "heads": lambda: [network.heads[module](x) for module, x in features.items()],
        },
        repetitions,
    )
    if dtype == torch.float32:  # both make the same adapter
        loop = iter(site_by_site(network, task_input))
        for A, B in network(task_input).values():
            for layer in range(LAYERS):
                torch.testing.assert_close((A[:, [layer]], B[:, [layer]]), next(loop), rtol=1e-3, atol=1e-4)
    ours, loop, heads = (1000 * seconds[name] for name in ("ours", "loop", "heads"))
    name = f"head {network.config.head}, {str(dtype).removeprefix('torch.')}"
    return [name, f"{ours:.1f}", f"{loop:.1f}", f"{loop / ours:.1f} x", f"{heads:.1f}"]


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__, repetitions=20)
    add_device(options)
    args = options.parse_args()
    rows = []
    for head in "LMS":
        network = make_network(head)
        for dtype in (torch.float32, torch.bfloat16):
            rows.append(compare(network, dtype, args.device, args.repetitions))
    print_table(["one adapter, in ms", "HyperLoRA", "loop over sites", "of ours", "the heads' products alone"], rows)


if __name__ == "__main__":
    main()
