import pytest
import torch
import torch.nn.functional as F

from hyperlora.config import HyperLoRAConfig
from hyperlora.errors import UserError
from hyperlora.hypernetwork import HyperNetwork

MISTRAL_7B = {"q_proj": (4096, 4096), "v_proj": (4096, 1024)}


def randomised(config: HyperLoRAConfig, seed: int = 0) -> HyperNetwork:
    """A float64 network whose heads do not start at zero, so that every input can be seen in the output."""
    torch.manual_seed(seed)
    network = HyperNetwork(config).eval().double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(
    ("head", "one_hot_16", "gte_1024", "mistral_4096"),
    [
        ("L", 55_252_992, 55_317_504, 55_514_112),
        ("M", 34_282_240, 34_346_752, 34_543_360),
        ("S", 4_923_392, 4_987_904, 5_184_512),
    ],
)
def test_parameter_counts_are_the_papers(head, one_hot_16, gte_1024, mistral_4096):
    def count(d_emb: int, **fields) -> int:
        config = HyperLoRAConfig(head, dict(MISTRAL_7B), num_layers=32, d_emb=d_emb, offset="factors", **fields)
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in HyperNetwork(config).parameters())

    assert count(16, task_input="one_hot", num_tasks=16) == one_hot_16
    assert count(1024) == gte_1024
    assert count(4096) == mistral_4096


@pytest.mark.parametrize("offset", ["none", "factors"])
@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_shapes_with_modules_of_different_sizes(head, offset):
    modules = {"q_proj": (24, 40), "v_proj": (24, 8), "down_proj": (56, 24)}
    network = HyperNetwork(HyperLoRAConfig(head, modules, num_layers=3, d_emb=16, rank=4, offset=offset))
    factors = network(torch.randn(5, 16))
    assert list(factors) == list(modules)
    for name, (d_in, d_out) in modules.items():
        A, B = factors[name]
        assert A.shape == (5, 3, 4, d_in)
        assert B.shape == (5, 3, d_out, 4)


def plain_reference(network: HyperNetwork, z, m: int, layer: int, d_in: int, d_out: int):
    """Eq. 3 and Fig. 8, 9 for one module of one layer of one task, written out one vector at a time."""
    w = dict(network.named_parameters())
    head, r = network.config.head, network.config.rank
    name = list(network.config.target_modules)[m]

    def linear(x, key):
        return w[f"{key}.weight"] @ x + w[f"{key}.bias"]

    def norm(x, key):
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * w[f"{key}.weight"] + w[f"{key}.bias"]

    def block(x, key):
        return F.silu(linear(F.silu(linear(norm(x, f"{key}.0"), f"{key}.1")), f"{key}.4"))

    task = norm(linear(z, "task_encoder.0"), "task_encoder.1")
    module = norm(w["module_encoder.0.weight"][m], "module_encoder.1")
    depth = norm(w["layer_encoder.0.weight"][layer], "layer_encoder.1")
    x = torch.cat([task, module, depth])
    x = F.silu(linear(F.silu(linear(x, "mlp0.0")), "mlp0.3"))
    x = x + block(x, "mlp1")
    if head == "L":
        out = w[f"heads.{name}.weight"] @ block(x + block(x, "mlp2"), "mlp3")
        return out[: r * d_in].view(r, d_in), out[r * d_in :].view(r, d_out).T
    if head != "M":
        ranks = [norm(w["rank_encoder.0.weight"][k], "rank_encoder.1") for k in range(r)]
    if head == "R":
        each = [x + rank for rank in ranks]
        rows = [w[f"heads.{name}.weight"] @ block(y + block(y, "mlp2"), "mlp3") for y in each]
        return torch.stack(rows)[:, :d_in], torch.stack(rows)[:, d_in:].T
    if network.config.rank_embedding == "through_mlp2":
        ranks = [rank + block(rank, "mlp2") for rank in ranks]
    matrices = []
    for side, width in enumerate((d_in, d_out)):
        y = x + norm(w["ab_embedding"][m, side], "ab_norm")
        y = y + block(y, "mlp2")
        if head == "M":
            rows = (w[f"heads.{name}.weight"] @ block(y, "mlp3")).view(r, max(d_in, d_out))
        else:
            rows = torch.stack([w[f"heads.{name}.weight"] @ block(y + rank, "mlp3") for rank in ranks])
        matrices.append(rows[:, :width])
    return matrices[0], matrices[1].T


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ("L", {}),
        ("M", {}),
        ("M", {"latent_size": 22, "head_size": 7}),  # 11 + 5 + 5
        ("S", {}),
        ("S", {"rank_embedding": "through_mlp2"}),
        ("R", {}),
    ],
)
def test_batched_pass_equals_one_vector_at_a_time(head, fields):
    modules = {"q_proj": (12, 20), "v_proj": (12, 6)}
    network = randomised(HyperLoRAConfig(head, modules, num_layers=3, d_emb=10, rank=2, offset="factors", **fields))
    z = torch.randn(4, 10, dtype=torch.float64)
    with torch.no_grad():
        factors = network(z)
        for m, (name, (d_in, d_out)) in enumerate(modules.items()):
            for task, layer in [(0, 0), (1, 2), (3, 1)]:
                A, B = plain_reference(network, z[task], m, layer, d_in, d_out)
                torch.testing.assert_close(factors[name][0][task, layer], A)
                torch.testing.assert_close(factors[name][1][task, layer], B)


@pytest.mark.parametrize("head", ["L", "M", "S"])
@pytest.mark.parametrize("fields", [{"offset": "factors"}, {"z_score": True}])
def test_zero_start_adds_nothing_at_step_0(make_config, head, fields):
    for A, B in HyperNetwork(make_config(head=head, **fields))(torch.randn(3, 16)).values():
        assert not A.any()
        assert not B.any()


@pytest.mark.parametrize("head", ["L", "M", "S"])
@pytest.mark.parametrize("offset", ["none", "delta"])
def test_peft_start_has_kaiming_a_and_zero_b_and_trains(make_config, head, offset):
    torch.manual_seed(0)
    network = HyperNetwork(make_config(head=head, offset=offset))
    z, target = torch.randn(3, 16), torch.randn(3, 2, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(20):
        A, B = network(z)["q_proj"]
        if step == 0:
            assert not B.any()
            bound = 1 / 64**0.5  # U(-1/√d_in, 1/√d_in), whose deviation is bound / √3
            assert A.abs().max() <= bound
            assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        loss = F.mse_loss(B @ A, target)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert network.heads["q_proj"].weight.grad.any()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    first, second, _ = network(z)["q_proj"][1]
    assert not torch.equal(first, second)  # the tasks' own targets pull their adapters apart


def test_evaluation_is_deterministic_and_training_has_dropout(make_config):
    network = randomised(make_config())
    z = torch.randn(2, 16, dtype=torch.float64)
    assert torch.equal(network(z)["q_proj"][0], network(z)["q_proj"][0])
    network.train()
    assert not torch.equal(network(z)["q_proj"][0], network(z)["q_proj"][0])


def test_tasks_of_a_batch_do_not_mix(make_config):
    network = randomised(make_config(head="S"))
    z = torch.randn(3, 16, dtype=torch.float64)
    together, alone = network(z)["v_proj"], network(z[1:2])["v_proj"]
    torch.testing.assert_close(together[1][1:2], alone[1])


def test_learned_task_vectors_are_trained_and_chosen_by_id(make_config):
    network = randomised(make_config(task_input="learned", num_tasks=5))
    A, _ = network(torch.tensor([4, 0, 4]))["q_proj"]
    torch.testing.assert_close(A[0], A[2])  # rounded by where in the batch a row is
    assert (A[0] - A[1]).abs().max() > 1e-3
    A.sum().backward()
    assert network.task_vectors.weight.grad.any(dim=1).tolist() == [True, False, False, False, True]


def test_encode_gives_64_and_features_what_the_heads_see(make_config):
    z = torch.randn(3, 16)
    for head, shape in {"L": (), "M": (2,), "S": (2, 8), "R": (8,)}.items():
        network = HyperNetwork(make_config(head=head))
        assert network.encode(z).shape == (3, 64)
        assert network.features(z).shape == (3, 2, 2, *shape, 512)


def test_a_task_input_of_another_size_is_refused(make_config):
    with pytest.raises(UserError, match=r"\[2, 17\].*\[n, 16\]"):
        HyperNetwork(make_config())(torch.randn(2, 17))
    with pytest.raises(UserError, match="task ids"):
        HyperNetwork(make_config(task_input="learned", num_tasks=4))(torch.randn(2, 16))


def test_bf16_autocast(make_config):
    network = randomised(make_config(offset="none")).float()
    z = torch.randn(2, 16)
    expected = network(z)["q_proj"][0]
    with torch.autocast("cpu", torch.bfloat16):
        A, _ = network(z)["q_proj"]
    assert F.cosine_similarity(A.flatten().float(), expected.flatten(), dim=0) > 0.99
