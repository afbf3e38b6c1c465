"""Descriptions in, adapters out: the equations of the paper, determinism, files, and bad input."""

import base64
import hashlib
import json
import pickle
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperlora import HyperLoRA, UserError, generator
from hyperlora.lora import Adapter


def random_inputs(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(1))


def build(config, seed: int = 0) -> HyperLoRA:
    """A generator whose heads are not at their start, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hyperlora = HyperLoRA(config)
        for head in hyperlora.network.heads.values():
            torch.nn.init.normal_(head.weight, std=0.1)
    return hyperlora.eval()


def delta_w(factors, scale: float, i: int, module: str, layer: int) -> torch.Tensor:
    a, b = factors[module]
    return scale * b[i, layer] @ a[i, layer]


# ---- the equations ----


def test_eq_6_adds_the_offset_to_a_and_to_b(make_config, make_adapter):
    hyperlora, offset = build(make_config(offset="factors")), make_adapter(5)
    hyperlora.set_offset(offset)
    raw, factors = hyperlora.network(random_inputs()), hyperlora.factors(random_inputs())
    for module, (a, b) in offset.weights.items():
        torch.testing.assert_close(factors[module][0], raw[module][0] + a)
        torch.testing.assert_close(factors[module][1], raw[module][1] + b)
    assert hyperlora.rank == 8 and hyperlora.scale == 16 / 8**0.5


def test_eq_6_starts_at_the_offset_exactly(make_config, make_adapter):
    hyperlora, offset = HyperLoRA(make_config(offset="factors")), make_adapter(5)
    hyperlora.set_offset(offset)
    [adapter] = hyperlora.generate(embeddings=random_inputs(1))
    for module, (a, b) in offset.weights.items():
        assert torch.equal(adapter.weights[module][0], a) and torch.equal(adapter.weights[module][1], b)


@pytest.mark.parametrize("use_rslora", [True, False])
def test_eq_8_sums_the_two_delta_w_at_twice_the_rank(make_config, make_adapter, use_rslora):
    hyperlora = build(make_config(offset="delta", use_rslora=use_rslora))
    offset = make_adapter(5, use_rslora=use_rslora)
    hyperlora.set_offset(offset)
    raw, factors = hyperlora.network(random_inputs()), hyperlora.factors(random_inputs())
    assert hyperlora.rank == 16 and factors["q_proj"][0].shape == (3, 2, 16, 64)
    for module in factors:
        expected = delta_w(raw, hyperlora.config.scale, 1, module, 0) + offset.delta_w(module, 0)
        torch.testing.assert_close(delta_w(factors, hyperlora.scale, 1, module, 0), expected)


def test_an_eq_8_adapter_exports_with_the_same_delta_w(make_config, make_adapter, tmp_path):
    hyperlora, offset = build(make_config(offset="delta")), make_adapter(5)
    hyperlora.set_offset(offset)
    raw = hyperlora.network(random_inputs(1))
    hyperlora.generate(embeddings=random_inputs(1))[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (16, 16, True)
    state = load_file(tmp_path / "adapter_model.safetensors")  # read as any PEFT software would
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_{}.weight"
    exported = 16 / 16**0.5 * state[key.format("B")] @ state[key.format("A")]
    expected = delta_w(raw, hyperlora.config.scale, 0, "v_proj", 1) + offset.delta_w("v_proj", 1)
    torch.testing.assert_close(exported, expected)


def test_an_offset_of_another_scale_keeps_its_delta_w(make_config, make_adapter):
    hyperlora = HyperLoRA(make_config(offset="factors"))
    plain = make_adapter(5, alpha=4.0, use_rslora=False)
    hyperlora.set_offset(plain)
    [adapter] = hyperlora.generate(embeddings=random_inputs(1))
    torch.testing.assert_close(adapter.delta_w("q_proj", 1), plain.delta_w("q_proj", 1))


def test_z_scores_become_weights(make_config, make_adapter):
    hyperlora = build(make_config(z_score=True))
    mean, std = make_adapter(1).weights, {m: (a.abs(), b.abs()) for m, (a, b) in make_adapter(2).weights.items()}
    hyperlora.set_z_score(mean, std)
    raw, factors = hyperlora.network(random_inputs()), hyperlora.factors(random_inputs())
    for module in mean:
        for side in (0, 1):
            expected = raw[module][side] * std[module][side] + mean[module][side]
            torch.testing.assert_close(factors[module][side], expected)


@pytest.mark.parametrize("offset", ["none", "factors", "delta"])
def test_training_reaches_every_parameter(make_config, make_adapter, offset):
    hyperlora = build(make_config(offset=offset)).train()
    if offset != "none":
        hyperlora.set_offset(make_adapter(5))
    factors = hyperlora.factors(random_inputs())
    sum((hyperlora.scale * b @ a).pow(2).sum() for a, b in factors.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in hyperlora.parameters())
    assert not any("offset" in name for name, _ in hyperlora.named_parameters())  # it stays as it is


# ---- generating ----


def test_texts_become_adapters(tiny_hyperlora):
    hyperlora = HyperLoRA.from_pretrained(tiny_hyperlora)
    first, second = hyperlora.generate(["Reverse the words.", "Add the numbers."])
    assert isinstance(first, Adapter) and first.description == "Reverse the words."
    assert (first.rank, first.alpha, first.use_rslora, first.base_model) == (8, 16.0, True, "tiny-base")
    assert first.weights["v_proj"][0].shape == (2, 8, 64) and first.weights["v_proj"][1].shape == (2, 32, 8)
    assert not torch.equal(first.delta_w("q_proj", 0), second.delta_w("q_proj", 0))
    assert len(hyperlora.generate("Reverse the words.")) == 1  # a text alone is a list of one


def test_the_same_description_gives_the_same_adapter(tiny_hyperlora):
    texts = ["Reverse the words.", "Add the two numbers and say what they are in words."]
    one, other = (HyperLoRA.from_pretrained(tiny_hyperlora) for _ in range(2))
    alone, again, batch = one.generate(texts[0])[0], other.train().generate(texts[0])[0], one.generate(texts)[0]
    assert other.training  # it was put back
    for module, (a, b) in alone.weights.items():
        assert torch.equal(again.weights[module][0], a) and torch.equal(again.weights[module][1], b)
        torch.testing.assert_close(batch.weights[module], (a, b), atol=1e-4, rtol=0)


def test_embeddings_stand_in_for_texts(tiny_hyperlora, minilm):
    hyperlora = HyperLoRA.from_pretrained(tiny_hyperlora)
    [from_text] = hyperlora.generate("Reverse the words.")
    [from_embedding] = hyperlora.generate(embeddings=minilm.embed(["Reverse the words."]))
    assert torch.equal(from_text.weights["q_proj"][1], from_embedding.weights["q_proj"][1])
    assert from_embedding.description is None


def test_a_far_description_gets_a_notice(tiny_hyperlora):
    near, far = HyperLoRA.from_pretrained(tiny_hyperlora).generate(["Reverse the order of words.", "xq zzkw 99 vvv"])
    assert near.nearest[0] == "Reverse the order of the words." and near.nearest[1] > 0.9 and near.notice is None
    assert far.nearest[1] < 0.5 and "far from every task" in far.notice and "may not help" in far.notice


def test_the_nearest_descriptions_by_cosine(tiny_hyperlora, minilm):
    hyperlora = HyperLoRA.from_pretrained(tiny_hyperlora)
    texts = ["Sum of two numbers", "Put the words in reverse order"]
    rows, known = minilm.embed(texts), minilm.embed(hyperlora.descriptions)
    for row, found in zip(rows, hyperlora.nearest(rows, k=10), strict=True):
        cosines = [torch.nn.functional.cosine_similarity(row, other, dim=0).item() for other in known]
        expected = sorted(zip(cosines, hyperlora.descriptions, strict=True), reverse=True)
        assert [text for text, _ in found] == [text for _, text in expected]
        assert [cosine for _, cosine in found] == pytest.approx([cosine for cosine, _ in expected], abs=1e-3)
    assert [len(found) for found in hyperlora.nearest(rows, k=2)] == [2, 2]
    assert [found[0] for found in hyperlora.nearest(rows)] == [each.nearest for each in hyperlora.generate(texts)]


def test_no_threshold_no_notice(tiny_hyperlora):
    hyperlora = HyperLoRA.from_pretrained(tiny_hyperlora)
    hyperlora.config.notice_threshold = None
    [far] = hyperlora.generate("xq zzkw 99 vvv")
    assert far.nearest is not None and far.notice is None


def test_an_adapter_beyond_the_norms_of_training_gets_a_sentence(tiny_hyperlora):
    hyperlora = HyperLoRA.from_pretrained(tiny_hyperlora)
    [adapter] = hyperlora.generate("Reverse the words.")
    assert hyperlora.norm_notice(adapter.scaled(1000)) is None  # nobody measured
    hyperlora.config.norm_range = (0.5 * adapter.norm(), 1.5 * adapter.norm())
    assert all(hyperlora.norm_notice(adapter.scaled(strength)) is None for strength in (-1.4, -0.6, 1))
    for strength in (-1.6, 3):
        assert "the answers may fall apart" in hyperlora.norm_notice(adapter.scaled(strength))
    assert "may hardly change the answers" in hyperlora.norm_notice(adapter.scaled(-0.4))
    hyperlora.config.norm_range = (1, 2.5)
    twelve = adapter.scaled(12.34 / adapter.norm())
    assert hyperlora.norm_notice(twelve).startswith("The adapter's ‖ΔW‖ is 12.3, and 1 to 2.5 for the trained tasks: ")


def test_numbered_tasks_take_no_texts(make_config):
    one_hot = build(make_config(task_input="one_hot", num_tasks=16))
    assert len(one_hot.generate(embeddings=torch.eye(16)[:2])) == 2
    learned = build(make_config(task_input="learned", num_tasks=5))
    first, second = learned.generate(embeddings=torch.tensor([0, 3]))
    assert not torch.equal(first.weights["q_proj"][0], second.weights["q_proj"][0])
    with pytest.raises(UserError, match="pass embeddings"):
        learned.generate("Reverse the words.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("\U0001f600\U0001f680 !?", "no letter or digit"),
        ("word " * 2000, "9,999 characters; the limit is 2,000"),
        (7, "must be text"),
        ("Sort \ud83d.", "The description holds '.ud83d', which is half a character"),
        ("caf\udce9", "a byte that is not UTF-8"),
    ],
)
def test_bad_descriptions(tiny_hyperlora, text, sentence):
    hyperlora = HyperLoRA.from_pretrained(tiny_hyperlora)
    with pytest.raises(UserError, match=sentence):
        hyperlora.generate([text])
    with pytest.raises(UserError, match=sentence):
        hyperlora.generate(["Reverse the words.", text])


def test_bad_embeddings(make_config):
    hyperlora = build(make_config())
    with pytest.raises(UserError, match=r"takes \[n, 16\]"):
        hyperlora.generate(embeddings=torch.zeros(2, 15))
    with pytest.raises(UserError, match="not finite"):
        hyperlora.generate(embeddings=torch.full((2, 16), float("nan")))
    with pytest.raises(UserError, match="1 descriptions and 2 embeddings"):
        hyperlora.generate(["Reverse the words."], embeddings=torch.zeros(2, 16))
    with pytest.raises(UserError, match="Give a description"):
        hyperlora.generate()


def test_an_embedder_of_another_size_is_refused(make_config, minilm):
    hyperlora = build(make_config())
    with pytest.raises(UserError, match="gives 384 values, but this hypernetwork takes 16"):
        hyperlora.embedder = minilm


def test_offsets_and_statistics_must_fit(make_config, make_adapter):
    with pytest.raises(UserError, match="offset 'none'"):
        HyperLoRA(make_config()).set_offset(make_adapter(1))
    with pytest.raises(UserError, match=r"A \[2, 4, 64\]"):
        HyperLoRA(make_config(offset="factors")).set_offset(make_adapter(1, rank=4))
    with pytest.raises(UserError, match="z_score false"):
        HyperLoRA(make_config()).set_z_score({}, {})
    with pytest.raises(UserError, match=r"need embeddings \[2, 16\]"):
        HyperLoRA(make_config()).set_descriptions(["a", "b"], torch.zeros(2, 15))


@pytest.mark.filterwarnings("ignore:This process")  # what Python says of a fork with threads
def test_a_forked_process_can_generate_by_itself(make_config, in_a_fork):
    """What the parent computed on several cores would leave it waiting for threads that it has not."""
    hyperlora, threads = build(make_config()), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(1000, 1000) @ torch.randn(1000, 1000)
        [adapter] = hyperlora.generate(embeddings=random_inputs(1))

        def again() -> float:
            torch.randn(1000, 1000) @ torch.randn(1000, 1000)
            return hyperlora.generate(embeddings=random_inputs(1))[0].norm()

        assert float(in_a_fork(again)) == pytest.approx(adapter.norm(), rel=1e-4)
    finally:
        torch.set_num_threads(threads)


# ---- files ----


@pytest.mark.parametrize("offset", ["none", "factors", "delta"])
@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_there_and_back(make_config, make_adapter, tmp_path, head, offset):
    saved = build(make_config(head=head, offset=offset, z_score=True))
    saved.set_z_score(make_adapter(1).weights, make_adapter(2).weights)
    if offset != "none":
        saved.set_offset(make_adapter(3))
    saved.set_descriptions(["Sort the list.", "Zählen — ünïcode"], random_inputs(2))
    saved.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "descriptions.json",
        "hyperlora.safetensors",
        "hyperlora_config.json",
    ]
    loaded = HyperLoRA.from_pretrained(tmp_path)
    assert loaded.config == saved.config and loaded.descriptions == saved.descriptions
    assert loaded.name == tmp_path.name and not loaded.training
    [a], [b] = (hyperlora.generate(embeddings=random_inputs(1)) for hyperlora in (saved, loaded))
    for module in a.weights:
        assert torch.equal(a.weights[module][0], b.weights[module][0])
        assert torch.equal(a.weights[module][1], b.weights[module][1])
    assert a.nearest == b.nearest


def test_half_precision_files_are_read_back_as_float32(make_config, tmp_path):
    hyperlora = build(make_config())
    hyperlora.save_pretrained(tmp_path / "full")
    hyperlora.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    size = {name: (tmp_path / name / "hyperlora.safetensors").stat().st_size for name in ("full", "half")}
    assert size["half"] < 0.55 * size["full"]
    loaded = HyperLoRA.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    [a], [b] = (h.generate(embeddings=random_inputs(1)) for h in (hyperlora, loaded))
    torch.testing.assert_close(a.weights["q_proj"][1], b.weights["q_proj"][1], atol=0.02, rtol=0.02)


@pytest.fixture
def sharded(make_config, tmp_path, monkeypatch):
    """A hypernetwork, and the folder where it is saved in shards of 20 kB."""
    monkeypatch.setattr(generator, "MAX_SHARD", 20_000)
    hyperlora = build(make_config())
    hyperlora.set_descriptions(["Sort the list."], random_inputs(1))
    hyperlora.save_pretrained(tmp_path / "sharded")
    return hyperlora, tmp_path / "sharded"


def test_large_weights_are_several_files_with_an_index(sharded):
    hyperlora, folder = sharded
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    count = len(shards)
    assert count > 2 and shards == [f"hyperlora-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    index = json.loads((folder / "hyperlora.safetensors.index.json").read_text())
    files = {name: load_file(folder / name) for name in shards}
    assert index["weight_map"] == {name: file for file, state in files.items() for name in state}
    for state in files.values():  # a tensor that is larger by itself has a file of its own
        assert len(state) == 1 or sum(tensor.nbytes for tensor in state.values()) <= 20_000
    state = {name: tensor for part in files.values() for name, tensor in part.items()}
    assert state.keys() == hyperlora.state_dict().keys()
    loaded = HyperLoRA.from_pretrained(folder)
    for name, tensor in hyperlora.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and torch.equal(state[name], tensor)
    assert loaded.descriptions == ["Sort the list."]


def test_another_save_leaves_nothing_of_the_one_before(sharded, make_config, monkeypatch):
    _, folder = sharded
    other = build(make_config(), seed=1)
    for limit, index in ((10**9, False), (20_000, True), (60_000, True)):
        monkeypatch.setattr(generator, "MAX_SHARD", limit)
        other.save_pretrained(folder)
        assert (folder / "hyperlora.safetensors.index.json").exists() is index
        assert (folder / "hyperlora.safetensors").exists() is not index
        shards = list(folder.glob("hyperlora-*"))
        assert all(path.name.endswith(f"of-{len(shards):05}.safetensors") for path in shards)
        loaded = HyperLoRA.from_pretrained(folder).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in other.state_dict().items())


def test_damaged_shards_are_named(sharded, tmp_path):
    _, folder = sharded
    second = sorted(folder.glob("hyperlora-*"))[1].name
    lacking = copy_without(folder, tmp_path / "lacking", second)
    with pytest.raises(UserError, match=f"lacks {second}, one of the .* files of its weights"):
        HyperLoRA.from_pretrained(lacking)
    (lacking / second).write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(UserError, match=f"{second} is damaged"):
        HyperLoRA.from_pretrained(lacking)
    (lacking / second).write_bytes((folder / second.replace("00002-of", "00001-of")).read_bytes())
    with pytest.raises(UserError, match=f"{second} does not fit hyperlora_config.json"):
        HyperLoRA.from_pretrained(lacking)
    index = folder / "hyperlora.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    for file in ("../other/hyperlora-00001-of-00002.safetensors", "/etc/passwd", "weights.bin", 3):
        index.write_text(json.dumps({"weight_map": content["weight_map"] | {name: file}}))
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            HyperLoRA.from_pretrained(folder)
    del content["weight_map"][name]
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"index.json does not fit .* lacks or adds {re.escape(name)}"):
        HyperLoRA.from_pretrained(folder)


def test_a_loaded_generator_can_be_trained_on(make_config, tmp_path):
    build(make_config()).save_pretrained(tmp_path)
    loaded = HyperLoRA.from_pretrained(tmp_path)
    a, b = loaded.factors(random_inputs())["q_proj"]
    (b @ a).sum().backward()
    assert loaded.network.task_encoder[0].weight.grad is not None


def test_missing_files_are_named(tiny_hyperlora, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        HyperLoRA.from_pretrained(tmp_path / "nowhere")
    for name in ("hyperlora_config.json", "hyperlora.safetensors", "descriptions.json"):
        folder = copy_without(tiny_hyperlora, tmp_path / name, name)
        with pytest.raises(UserError, match=name):
            HyperLoRA.from_pretrained(folder)


def test_a_pickle_is_not_read(tiny_hyperlora, tmp_path):
    folder = copy_without(tiny_hyperlora, tmp_path / "pickled", "hyperlora.safetensors")
    (folder / "hyperlora.safetensors").write_bytes(pickle.dumps({"weights": 1}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(UserError, match=r"hyperlora\.safetensors is damaged"):
        HyperLoRA.from_pretrained(folder)


def test_damaged_files_are_named(tiny_hyperlora, tmp_path):
    weights = (tiny_hyperlora / "hyperlora.safetensors").read_bytes()
    folder = copy_without(tiny_hyperlora, tmp_path / "cut", "hyperlora.safetensors")
    (folder / "hyperlora.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"hyperlora\.safetensors is damaged"):
        HyperLoRA.from_pretrained(folder)

    folder = copy_without(tiny_hyperlora, tmp_path / "list", "descriptions.json")
    (folder / "descriptions.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"descriptions\.json is damaged"):
        HyperLoRA.from_pretrained(folder)

    folder = copy_without(tiny_hyperlora, tmp_path / "nan", "hyperlora.safetensors")
    state = load_file(tiny_hyperlora / "hyperlora.safetensors")
    state["network.ab_embedding"][0, 0, 0] = float("nan")
    save_file(state, folder / "hyperlora.safetensors")
    with pytest.raises(UserError, match=r"network\.ab_embedding holds values that are not finite"):
        HyperLoRA.from_pretrained(folder)


def test_weights_that_do_not_fit_the_config_are_refused(tiny_hyperlora, tmp_path):
    folder = copy_without(tiny_hyperlora, tmp_path / "wide", "")
    config = json.loads((folder / "hyperlora_config.json").read_text())
    # A terabyte, if it were allocated.
    big = config | {"target_modules": [["q_proj", 2**18, 2**18], ["v_proj", 64, 32]], "rank": 1024}
    (folder / "hyperlora_config.json").write_text(json.dumps(big))
    with pytest.raises(UserError, match=r"does not fit hyperlora_config\.json"):
        HyperLoRA.from_pretrained(folder)
    (folder / "hyperlora_config.json").write_text(json.dumps(config | {"head": "S"}))
    with pytest.raises(UserError, match="lacks or adds"):
        HyperLoRA.from_pretrained(folder)


def test_a_failed_save_leaves_the_old_file_whole(make_config, tmp_path, monkeypatch):
    hyperlora = build(make_config())
    hyperlora.save_pretrained(tmp_path)
    before = (tmp_path / "hyperlora.safetensors").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build(make_config(), seed=1).save_pretrained(tmp_path)
    assert (tmp_path / "hyperlora.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


# ---- the Hub, which is a server in this process ----


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits of those who have the token, and gives them out again."""

    repos: ClassVar[dict[str, dict[str, bytes]]] = {}
    created: ClassVar[list[dict]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.partition("?")[0].strip("/").split("/")  # api/models/OWNER/NAME/...
        if self.headers.get("Authorization") != "Bearer hf_of_owner":
            self.answer(401, {"error": "Invalid username or password."})
        elif parts[1:] == ["repos", "create"]:
            self.created.append(json.loads(body))
            name = f"{self.created[-1]['organization']}/{self.created[-1]['name']}"
            self.repos.setdefault(name, {})
            self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        elif parts[4] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif parts[4] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "deletedFile":
                    del self.repos["/".join(parts[2:4])][line["value"]["path"]]
                if line["key"] == "file":
                    self.repos["/".join(parts[2:4])][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200,
                {
                    "commitUrl": f"http://{self.headers['Host']}/owner/net/commit/{'ab' * 20}",
                    "commitOid": "ab" * 20,
                    "success": True,
                },
            )

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api" and parts[4] == "tree":
            files = self.repos["/".join(parts[2:4])]
            self.answer(200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "a"} for path in files])
        elif parts[0] == "api":
            siblings = [{"rfilename": path} for path in self.repos["/".join(parts[2:4])]]
            self.answer(200, {"id": "/".join(parts[2:4]), "sha": "ab" * 20, "siblings": siblings})
        else:  # OWNER/NAME/resolve/COMMIT/FILE
            self.answer(200, self.repos["/".join(parts[:2])][parts[4]])

    do_HEAD = do_GET

    def answer(self, status: int, content: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", "ab" * 20)
        self.send_header("ETag", hashlib.sha1(body).hexdigest())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on this machine, an empty cache, and the token of "owner"."""
    monkeypatch.setattr(Hub, "repos", {})
    monkeypatch.setattr(Hub, "created", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_owner")
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("dtype", "private"), [(None, False), (torch.bfloat16, True), (torch.float16, False)], ids=str)
def test_a_hypernetwork_goes_to_the_hub_and_comes_back(make_config, tmp_path, hub, dtype, private):
    hyperlora = build(make_config())
    hyperlora.set_descriptions(["Sort the list."], random_inputs(1))
    hyperlora.save_pretrained(tmp_path / "here", dtype)
    assert hyperlora.push_to_hub("owner/net", private=private, dtype=dtype).endswith("owner/net")
    assert hub.created[0]["name"] == "net" and (hub.created[0].get("visibility") == "private") is private
    assert hub.repos == {"owner/net": {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}}
    back = HyperLoRA.from_pretrained("owner/net")
    assert back.name == "owner/net" and back.config == hyperlora.config and back.descriptions == ["Sort the list."]
    hyperlora.push_to_hub("owner/net")  # again: a new commit of the same repository


def test_shards_go_to_the_hub_and_come_back(sharded, hub, monkeypatch):
    hyperlora, folder = sharded
    monkeypatch.setattr(generator, "MAX_SHARD", 10**9)
    hyperlora.push_to_hub("owner/net")
    assert "hyperlora.safetensors" in hub.repos["owner/net"]
    monkeypatch.setattr(generator, "MAX_SHARD", 20_000)
    hyperlora.push_to_hub("owner/net")  # which leaves no file of the weights before
    assert hub.repos == {"owner/net": {path.name: path.read_bytes() for path in folder.iterdir()}}
    hub.repos["owner/net"]["training.bin"] = b"not fetched"
    back = HyperLoRA.from_pretrained("owner/net")
    assert torch.equal(back.state_dict()["network.ab_embedding"], hyperlora.state_dict()["network.ab_embedding"])


@pytest.mark.parametrize(
    ("name", "token"), [("owner/net", "hf_of_another"), ("owner/net", None), ("a/b/c", "hf_of_owner")]
)
def test_an_upload_that_is_refused_is_one_sentence(make_config, hub, monkeypatch, name, token):
    monkeypatch.setattr("huggingface_hub.utils._auth.get_token", lambda: token)
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=f"{name} could not be uploaded .*: check its name") as caught:
        build(make_config()).push_to_hub(name)
    assert "\n" not in str(caught.value) and hub.repos == {}


def copy_without(source, target, name: str):
    target.mkdir()
    for path in source.iterdir():
        if path.name != name:
            (target / path.name).write_bytes(path.read_bytes())
    return target


# ---- which checkpoint it is ----


def test_a_checkpoint_is_told_by_what_its_adapters_are_made_of(make_config, tmp_path):
    hyperlora = build(make_config())
    hyperlora.save_pretrained(tmp_path)
    same = HyperLoRA.from_pretrained(tmp_path)
    same.set_descriptions(["Sort the list."], random_inputs(1))
    same.config.notice_threshold = 0.5  # what is only said about adapters
    assert same.checkpoint == hyperlora.checkpoint and len(same.checkpoint) == 12
    changed = HyperLoRA.from_pretrained(tmp_path)
    with torch.no_grad():
        changed.network.heads["v_proj"].weight[0, 0] += 1e-3
    again = [HyperLoRA.from_pretrained(tmp_path) for _ in range(2)]
    again[0].config.alpha = 8.0
    again[1].config.target_modules = dict(reversed(again[1].config.target_modules.items()))
    assert len({other.checkpoint for other in (same, changed, *again)}) == 4
