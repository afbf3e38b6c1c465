import json
import pickle

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM

from hyperlora.errors import UserError
from hyperlora.lora import Adapter

IDS = torch.tensor([[1, 10, 20, 30, 40, 50]])

FIGURE_7 = json.loads("""{
  "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
  "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
  "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {},
  "lora_alpha": 16, "lora_dropout": 0.05, "megatron_config": null, "megatron_core": "megatron.core",
  "modules_to_save": null, "peft_type": "LORA", "r": 8, "rank_pattern": {}, "revision": null,
  "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": true
}""")


def assert_same_delta(adapter: Adapter, expected: Adapter, factor: float = 1.0) -> None:
    for module in expected.weights:
        for layer in range(expected.num_layers):
            torch.testing.assert_close(adapter.delta_w(module, layer), factor * expected.delta_w(module, layer))


def test_scale_rank_and_delta_w(make_adapter):
    adapter = make_adapter(0, rank=4)
    A, B = adapter.weights["v_proj"]
    assert (adapter.rank, adapter.num_layers, adapter.scale) == (4, 2, 16 / 4**0.5)
    assert make_adapter(0, rank=4, use_rslora=False).scale == 16 / 4
    torch.testing.assert_close(adapter.delta_w("v_proj", 1), 8.0 * B[1] @ A[1])


def test_norm_is_that_of_all_delta_w_together(make_adapter):
    adapter = make_adapter(0).scaled(-0.5)
    every = torch.cat([adapter.delta_w(module, layer).flatten() for module in adapter.weights for layer in (0, 1)])
    assert adapter.norm() == pytest.approx(every.norm().item(), rel=1e-5)
    each = [[adapter.delta_w(module, layer).norm() for module in adapter.weights] for layer in (0, 1)]
    torch.testing.assert_close(adapter.norms(), torch.tensor(each))


def test_scaled_shares_the_tensors_and_sets_the_strength(make_adapter):
    adapter = make_adapter(0, description="Reverse the words.")
    half = adapter.scaled(0.5)
    assert half.weights is adapter.weights
    assert half.description == "Reverse the words."
    assert_same_delta(half, adapter, 0.5)
    assert_same_delta(half.scaled(1.0), adapter)


@pytest.mark.parametrize(
    "strength", [float("inf"), float("nan"), 10**5000, "0.5", None], ids=["inf", "nan", "huge", "text", "none"]
)
def test_a_strength_that_is_no_number_is_refused(make_adapter, strength):
    with pytest.raises(UserError, match="strength should be a number from -1e6 to 1e6"):
        make_adapter(0).scaled(strength)


def test_blend_is_exact_over_ranks_scales_and_strengths(make_adapter):
    a = make_adapter(0, rank=8, description="a")
    b = make_adapter(1, rank=4, alpha=32.0, use_rslora=False, description="b").scaled(1.5)
    blend = Adapter.blend([a, b], [0.25, -2.0])
    assert blend.rank == 12
    assert blend.description == "0.25 * a + -3 * b"
    for module in a.weights:
        expected = 0.25 * a.delta_w(module, 1) - 2.0 * b.delta_w(module, 1)
        torch.testing.assert_close(blend.delta_w(module, 1), expected, rtol=1e-4, atol=1e-5)


def test_a_blend_of_factors_is_a_point_between_them(make_adapter):
    a, b = make_adapter(0), make_adapter(1, alpha=8.0)
    blend = Adapter.blend([a, b.scaled(0.5)], [0.25, 0.75], "factors")
    assert (blend.rank, blend.scale) == (8, a.scale)
    for module in a.weights:
        (A, B), (A2, B2) = a.weights[module], b.weights[module]
        for layer in (0, 1):
            mean_A, mean_B = 0.25 * A[layer] + 0.75 * A2[layer], 0.25 * a.scale * B[layer] + 0.375 * b.scale * B2[layer]
            torch.testing.assert_close(blend.delta_w(module, layer), mean_B @ mean_A)
    assert_same_delta(Adapter.blend([a, a], [0.25, 0.75], "factors"), a)
    with pytest.raises(UserError, match=r"the ranks \[4, 8\]: blend them in ΔW space"):
        Adapter.blend([a, make_adapter(1, rank=4)], [1, 1], "factors")


def assert_nearest_of_rank(adapter: Adapter, rank: int) -> float:
    """`cut` gives what the SVD of each whole ΔW gives, and the error that is found there, which is returned."""
    cut, error = adapter.cut(rank)
    assert (cut.rank, cut.strength, cut.description) == (rank, adapter.strength, adapter.description)
    lost = whole = 0.0
    for module in adapter.weights:
        for layer in range(adapter.num_layers):
            delta = adapter.delta_w(module, layer)
            U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
            expected = U[:, :rank] * S[:rank] @ Vh[:rank]
            torch.testing.assert_close(cut.delta_w(module, layer), expected, atol=1e-4, rtol=1e-4)
            lost, whole = lost + (delta - expected).square().sum(), whole + delta.square().sum()
    assert error == pytest.approx(float((lost / whole).sqrt()), rel=1e-3, abs=1e-5)
    return error


@pytest.mark.parametrize("use_rslora", [True, False])
def test_cut_keeps_the_largest_singular_values_and_says_the_error(make_adapter, use_rslora):
    parts = [make_adapter(seed, use_rslora=use_rslora) for seed in range(3)]
    blend = Adapter.blend(parts, [1, 0.5, -2]).scaled(-1.5)
    assert 0.3 > assert_nearest_of_rank(blend, 16) > 0.01 and assert_nearest_of_rank(blend, 3) > 0.5
    assert blend.cut(24) == (blend, 0.0) and blend.cut(100)[0] is blend
    same = Adapter.blend([parts[0], parts[0]], [0.5, 1])
    assert assert_nearest_of_rank(same, 8) < 1e-5  # its ΔW have rank 8


def test_cut_of_what_has_more_ranks_than_a_module_has_rows(make_adapter):
    assert assert_nearest_of_rank(make_adapter(0, rank=80), 40) > 0  # v_proj gives 32 values
    nothing = Adapter({"q_proj": (torch.zeros(2, 8, 4), torch.zeros(2, 4, 8))}, alpha=16.0, use_rslora=True)
    cut, error = nothing.cut(2)
    assert (cut.rank, cut.norm(), error) == (2, 0.0, 0.0)
    huge = make_adapter(0)
    huge.weights = {module: (A * 1e30, B * 1e30) for module, (A, B) in huge.weights.items()}
    assert huge.cut(4)[1] == pytest.approx(make_adapter(0).cut(4)[1])  # nothing in it is infinite


def test_the_digest_is_of_what_delta_w_is_made_of(tmp_path, make_adapter):
    adapter = make_adapter(0, description="Sort.", base_model="tiny-base")
    adapter.save_pretrained(tmp_path)
    digest = Adapter.from_pretrained(tmp_path).digest()
    assert digest == adapter.digest() == make_adapter(0).digest() and len(digest) == 64
    others = [make_adapter(1), make_adapter(0, alpha=8.0), adapter.scaled(0.25), make_adapter(0, use_rslora=False)]
    assert len({digest, *(other.digest() for other in others)}) == 5


def test_blend_refuses_what_does_not_belong_together(make_adapter):
    a, b = make_adapter(0, base_model="one"), make_adapter(1, base_model="two")
    only_q = Adapter({"q_proj": a.weights["q_proj"]}, alpha=16.0, use_rslora=True)
    for adapters, weights in [([a, b], [1, 1]), ([a, only_q], [1, 1]), ([a, a], [1]), ([], [])]:
        with pytest.raises(UserError):
            Adapter.blend(adapters, weights)


def test_config_is_figure_7(make_adapter):
    config, state = make_adapter(0, base_model="mistralai/Mistral-7B-Instruct-v0.2").to_peft()
    assert config == FIGURE_7
    assert list(config) == list(FIGURE_7)
    assert state["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"].shape == (32, 8)
    assert len(state) == 2 * 2 * 2


def test_peft_reads_the_config_without_a_warning(tmp_path, make_adapter, recwarn):
    make_adapter(0).save_pretrained(tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.use_rslora) == (8, 16, True)
    assert not recwarn.list


@pytest.mark.parametrize("use_rslora", [True, False])
@pytest.mark.parametrize("modules", [["q_proj", "v_proj"], ["down_proj", "k_proj", "gate_proj"]])
def test_peft_loads_what_we_save_and_adds_the_same_delta_w(tmp_path, tiny_model, use_rslora, modules):
    layer = tiny_model.model.layers[0]
    sizes = {name: (getattr(layer.self_attn, name, None) or getattr(layer.mlp, name)).weight.shape for name in modules}
    weights = {m: (torch.randn(2, 6, d_in), torch.randn(2, d_out, 6)) for m, (d_out, d_in) in sizes.items()}
    adapter = Adapter(weights, alpha=10.0, use_rslora=use_rslora).scaled(0.7)
    adapter.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model, tmp_path)
    for name, part in loaded.named_modules():
        if isinstance(part, peft.tuners.lora.Linear):
            delta = adapter.delta_w(name.rpartition(".")[2], int(name.split(".layers.")[1].split(".")[0]))
            torch.testing.assert_close(part.get_delta_weight("default"), delta, rtol=1e-4, atol=1e-5)
    assert sum(isinstance(part, peft.tuners.lora.Linear) for part in loaded.modules()) == 2 * len(modules)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use_rslora", [True, False])
def test_we_load_what_peft_saves(tmp_path, tiny_model, use_rslora, dtype):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=use_rslora, target_modules=["v_proj", "o_proj"], init_lora_weights=False
    )
    tuned = peft.get_peft_model(tiny_model, config).to(dtype)
    tuned.save_pretrained(tmp_path)
    adapter = Adapter.from_pretrained(tmp_path)
    assert adapter.use_rslora is use_rslora
    assert adapter.weights["o_proj"][0].dtype == torch.float32
    lora = tuned.base_model.model.model.layers[1].self_attn.o_proj.float()
    torch.testing.assert_close(adapter.delta_w("o_proj", 1), lora.get_delta_weight("default"))


def test_folder_there_and_back(tmp_path, make_adapter):
    adapter = make_adapter(3, base_model="some/base", description="Reverse the words.", hyperlora="some/hyperlora")
    adapter.save_pretrained(tmp_path / "new" / "folder")
    again = Adapter.from_pretrained(tmp_path / "new" / "folder")
    assert (again.description, again.base_model, again.hyperlora) == (
        "Reverse the words.",
        "some/base",
        "some/hyperlora",
    )
    for module, (A, B) in adapter.weights.items():
        assert torch.equal(again.weights[module][0], A)
        assert torch.equal(again.weights[module][1], B)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_what_a_config_may_leave_out(make_adapter):
    config, state = make_adapter(0).to_peft()
    for key in ("use_rslora", "lora_dropout", "init_lora_weights", "bias", "revision", "base_model_name_or_path"):
        config.pop(key)
    adapter = Adapter.from_peft(config, state)
    assert (adapter.use_rslora, adapter.lora_dropout, adapter.base_model) == (False, 0.0, None)  # PEFT's defaults
    assert Adapter.from_peft(config | {"use_rslora": True}, state).scale == 16 / 8**0.5


def test_strength_is_folded_in_on_save(tmp_path, make_adapter):
    adapter = make_adapter(3).scaled(0.3)
    adapter.save_pretrained(tmp_path)
    again = Adapter.from_pretrained(tmp_path)
    assert again.strength == 1.0
    assert_same_delta(again, adapter)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 4}, "rank 4"),
        ({"r": "8"}, "r should"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_dropout": 7}, "lora_dropout"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path"),
        ({"revision": 1}, "revision should be a text, not 1"),
        ({"use_rslora": 1}, "use_rslora should be true or false, not 1"),
        ({"use_rslora": 0}, "use_rslora should be true or false, not 0"),
        ({"use_rslora": "true"}, "use_rslora should be true or false, not 'true'"),
        ({"use_rslora": None}, "use_rslora should be true or false, not None"),
        ({"r": True}, "r should be a whole number from 1 to 1024, not True"),
        ({"r": 8.0}, "r should be a whole number"),
        ({"lora_alpha": True}, "lora_alpha should be a number above 0, not True"),
        ({"lora_alpha": "16"}, "lora_alpha should be a number above 0, not '16'"),
        ({"lora_alpha": 10**400}, "lora_alpha should be a number"),
        ({"lora_dropout": ""}, "lora_dropout should be a number from 0 to 1, not ''"),
        ({"lora_dropout": False}, "lora_dropout should be a number from 0 to 1, not False"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1"),
    ],
)
def test_a_config_beyond_plain_lora_is_refused_by_name(make_adapter, fields, named):
    config, state = make_adapter(0).to_peft()
    with pytest.raises(UserError, match=named):
        Adapter.from_peft(config | fields, state)


def test_wrong_weights_are_refused_by_name(make_adapter):
    config, state = make_adapter(0).to_peft()
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight".format
    rest = {name: tensor for name, tensor in state.items() if name != key(1)}
    for wrong, named in [
        ({}, "no weights"),
        (rest, "lacks lora_A of q_proj in layer 1"),
        (rest | {key(1): torch.zeros(8, 48)}, "different shapes"),
        (rest | {key(1): torch.zeros(8)}, "shape"),
        (rest | {key(1): torch.zeros(8, 64, dtype=torch.int8)}, "int8"),
        (rest | {key(1): torch.full((8, 64), float("nan"))}, "not finite"),
        (state | {key(9999): state[key(1)]}, "layer 2"),
        (state | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, "lm_head"),
        (state | {"base_model.model.model.layers.0.mlp.q_proj.lora_A.weight": state[key(0)]}, "mlp.q_proj"),
    ]:
        with pytest.raises(UserError, match=named):
            Adapter.from_peft(config, wrong)


def test_wrong_shapes_are_refused_on_construction():
    for A, B in [((2, 8, 4), (2, 4, 7)), ((2, 8, 4), (3, 4, 8)), ((8, 4), (4, 8))]:
        with pytest.raises(UserError, match="q_proj"):
            Adapter({"q_proj": (torch.zeros(A), torch.zeros(B))}, alpha=16.0, use_rslora=True)
    two_ranks = {f"{m}_proj": (torch.zeros(2, r, 4), torch.zeros(2, 4, r)) for m, r in (("q", 4), ("v", 8))}
    with pytest.raises(UserError, match="differ in rank"):
        Adapter(two_ranks, alpha=16.0, use_rslora=True)


@pytest.mark.parametrize("description", ["\ud83d", "caf\udce9", 7], ids=ascii)
def test_a_description_that_is_no_text_is_refused(make_adapter, description):
    with pytest.raises(UserError, match="The adapter's description"):
        make_adapter(0, description=description)


def test_a_module_that_cannot_be_exported_is_named():
    adapter = Adapter({"qkv": (torch.zeros(2, 8, 4), torch.zeros(2, 4, 8))}, alpha=16.0, use_rslora=True)
    with pytest.raises(UserError, match="qkv"):
        adapter.to_peft()


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("beside_safetensors", [True, False])
def test_a_pickle_is_refused_unread(tmp_path, make_adapter, beside_safetensors):
    folder, sprung = tmp_path / "adapter", tmp_path / "sprung"
    make_adapter(0).save_pretrained(folder)
    if not beside_safetensors:
        (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(str(sprung))))
    with pytest.raises(UserError, match=r"adapter_model\.bin"):
        Adapter.from_pretrained(folder)
    assert not sprung.exists()


def test_a_pickle_under_the_name_of_safetensors_is_damage(tmp_path, make_adapter):
    make_adapter(0).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    with pytest.raises(UserError, match="damaged"):
        Adapter.from_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_its_files_or_with_half_a_file(tmp_path, make_adapter):
    with pytest.raises(UserError, match="no folder"):
        Adapter.from_pretrained(tmp_path / "nowhere")
    make_adapter(0).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 8 + whole[8:]):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            Adapter.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        Adapter.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        Adapter.from_pretrained(tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, make_adapter):
    make_adapter(0).save_pretrained(tmp_path)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}).encode()
    with open(tmp_path / "adapter_model.safetensors", "wb") as file:  # sparse: takes no space on the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**32)
    with pytest.raises(UserError, match="GiB"):
        Adapter.from_pretrained(tmp_path)


def test_an_adapter_in_half_precision_has_the_logits_that_peft_gives_it(tmp_path, tiny_base, make_adapter):
    """PEFT raises half precision to float32 on load; so do we."""
    adapter = make_adapter(5)
    adapter.save_pretrained(tmp_path)
    half = {key: tensor.half() for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    save_file(half, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    base = MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(base, tmp_path).eval()(IDS).logits
        merged = MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
        ours = Adapter.from_pretrained(tmp_path)
        for i, layer in enumerate(merged.model.layers):
            for name in ours.weights:
                getattr(layer.self_attn, name).weight += ours.delta_w(name, i)
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-5)
