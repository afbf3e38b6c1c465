"""Public checkpoints generate the weights that the public implementation generates from them, or are refused."""

import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from hyperlora.__main__ import main
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.interop.text_to_lora import import_checkpoint
from hyperlora.presets import GTE_REVISION
from hyperlora.prompt import TRAINED

HERE = Path(__file__).parent
FOLDERS = ["L-sft-bias", "M-sft-offset", "M-recon-zscore"]
CASES = json.loads((HERE / "heads.json").read_text())
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


def stored(name: str) -> dict[str, Tensor]:
    """The tensors of one case of heads.safetensors: its state dict, `task_inputs`, `expected/...`."""
    prefix = f"{name}/"
    tensors = load_file(HERE / "heads.safetensors")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def write(folder: Path, name: str, state: dict | None = None, **changes) -> Path:
    """A case of heads.safetensors as a checkpoint folder, its arguments or state dict changed."""
    folder.mkdir(exist_ok=True)
    tensors = {key: value for key, value in stored(name).items() if not key.startswith(("expected/", "task_inputs"))}
    torch.save(OrderedDict(tensors | (state or {})), folder / "hypermod.pt")
    (folder / "args.yaml").write_text(yaml.dump(CASES[name]["args"] | changes))
    adapter = json.loads((HERE / "L-sft-bias" / "adapter_config.json").read_text()) | {"r": 3, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


def assert_generates(hyperlora: HyperLoRA, inputs: Tensor, expected: list[dict[str, Tensor]]) -> None:
    for adapter, wanted in zip(hyperlora.generate(embeddings=inputs), expected, strict=True):
        _, found = adapter.to_peft()
        assert set(found) == set(wanted)
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0)


# ---- what comes out ----


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_generate_what_they_should_and_so_does_the_native_one(name, tmp_path):
    tensors = load_file(HERE / name / "expected.safetensors")
    inputs = tensors.pop("task_embeddings")
    expected = [{k[2:]: v for k, v in tensors.items() if k.startswith(f"{i}.")} for i in range(len(inputs))]
    imported = import_checkpoint(HERE / name)
    assert_generates(imported, inputs, expected)
    imported.save_pretrained(tmp_path)
    native = HyperLoRA.from_pretrained(tmp_path)
    assert native.config == imported.config
    assert_generates(native, inputs, expected)


@pytest.mark.parametrize("name", CASES)
def test_every_head_and_option_generates_what_it_should(name, tmp_path):
    tensors = stored(name)
    expected = [
        {key.split("/")[2]: value for key, value in tensors.items() if key.startswith(f"expected/{i}/")} for i in (0, 1)
    ]
    imported = import_checkpoint(write(tmp_path, name), order=CASES[name]["order"])
    assert imported.config.head == name[0]
    assert_generates(imported, tensors["task_inputs"], expected)


def test_the_config_carries_what_adapters_need():
    config = import_checkpoint(HERE / "L-sft-bias").config
    assert config.base_model == MISTRAL and config.embedder == "Alibaba-NLP/gte-large-en-v1.5"
    assert config.embedder_revision == GTE_REVISION
    assert config.chat_template == TRAINED[MISTRAL] and config.prompt_style == "definition_input"
    assert (config.rank, config.alpha, config.use_rslora) == (8, 16.0, True)
    assert (config.latent_size, config.head_size, config.d_emb, config.num_layers) == (32, 64, 32, 4)
    assert config.target_modules == {"q_proj": (64, 64), "v_proj": (64, 32)}
    assert import_checkpoint(HERE / "M-sft-offset").config.offset == "factors"
    assert import_checkpoint(HERE / "M-recon-zscore").config.z_score


def test_less_usual_arguments(tmp_path):
    one_hot = import_checkpoint(write(tmp_path / "one_hot", "L-one-hot")).config
    assert one_hot.task_input == "one_hot" and one_hot.num_tasks == 6
    assert import_checkpoint(write(tmp_path / "last_token", "L-bias-offset")).config.embedder == "last_token"
    local = write(tmp_path / "local", "S-sft-bias", model_dir="models/gemma-2-2b-it/", emb_model="gte-large-en-v1.5")
    config = import_checkpoint(local).config
    assert config.base_model == "google/gemma-2-2b-it" and config.embedder == "Alibaba-NLP/gte-large-en-v1.5"
    own = import_checkpoint(write(tmp_path / "own", "S-sft-bias", model_dir="/home/me/my-model")).config
    assert own.base_model == "/home/me/my-model" and own.chat_template is None


def test_half_precision_is_read_as_float32(tmp_path):
    half = {key: value.half() for key, value in stored("M-sft-bias").items() if "/" not in key and key != "task_inputs"}
    imported = import_checkpoint(write(tmp_path, "M-sft-bias", half))
    assert {tensor.dtype for tensor in imported.network.parameters()} == {torch.float32}


def test_the_order_is_that_of_the_arguments_unless_given(tmp_path):
    folder = write(tmp_path, "L-bias-offset")
    assumed = import_checkpoint(folder)
    assert list(assumed.config.target_modules) == ["q_proj", "v_proj", "down_proj"]
    assert assumed.config.module_order_assumed
    given = import_checkpoint(folder, order=["v_proj", "down_proj", "q_proj"])
    assert list(given.config.target_modules) == ["v_proj", "down_proj", "q_proj"]
    assert not given.config.module_order_assumed
    inputs = stored("L-bias-offset")["task_inputs"]
    [a, _], [b, _] = assumed.generate(embeddings=inputs), given.generate(embeddings=inputs)
    assert (a.weights["q_proj"][0] - b.weights["q_proj"][0]).abs().max() > 0.05


@pytest.mark.parametrize("order", [["q_proj"], ["q_proj", "k_proj"], ["q_proj", "v_proj", "v_proj"], []])
def test_an_order_of_other_modules_is_refused(order):
    with pytest.raises(UserError, match="should hold each of q_proj,v_proj once"):
        import_checkpoint(HERE / "L-sft-bias", order=order)


def test_subfolders_here_and_on_the_hub(monkeypatch):
    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(HERE)

    asked: dict = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert import_checkpoint(HERE, "L-sft-bias").name == "L-sft-bias"
    assert not asked
    assert import_checkpoint("someone/loras", "L-sft-bias", "abc123").name == "someone/loras/L-sft-bias"
    assert asked["repo_id"] == "someone/loras" and asked["revision"] == "abc123"
    files = ["L-sft-bias/hypermod.pt", "L-sft-bias/args.yaml", "L-sft-bias/adapter_config.json"]
    assert asked["allow_patterns"] == files
    for outside in ("../interop/L-sft-bias", "/etc", "L-sft-bias/..", "*"):
        with pytest.raises(UserError, match="should be a path inside"):
            import_checkpoint(HERE, outside)


# ---- the command ----


def test_the_command_writes_a_native_folder_and_says_the_order(tmp_path, capsys):
    assert main(["import", str(HERE), "--subfolder", "L-sft-bias", "-o", str(tmp_path / "native")]) == 0
    out, err = capsys.readouterr()
    assert (
        "q_proj, v_proj" in out and "an assumption" in out and err == f"The hypernetwork is in {tmp_path / 'native'}.\n"
    )
    assert HyperLoRA.from_pretrained(tmp_path / "native").config.module_order_assumed
    arguments = ["import", str(HERE / "L-sft-bias"), "-o", str(tmp_path / "given"), "--order", "v_proj, q_proj"]
    assert main(arguments) == 0
    out, _ = capsys.readouterr()
    assert "v_proj, q_proj" in out and "assumption" not in out
    assert list(HyperLoRA.from_pretrained(tmp_path / "given").config.target_modules) == ["v_proj", "q_proj"]


def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys):
    assert main(["import", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "hypermod.pt is missing" in err
    assert not list(tmp_path.iterdir())


# ---- what cannot be represented ----


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"autoreg_gen": True}, "rotary"),
        ({"autoreg_gen": True, "shared_AB_head": False}, "rotary"),
        ({"encoder_type": "vq"}, "'vq'"),
        ({"encoder_type": "discrete"}, "'discrete'"),
        ({"encoder_type": "softmax"}, "'softmax'"),
        ({"exp_setup": "hyper_vera"}, "hyper-VeRA"),
        ({"training_task": "recon"}, "not factorized"),
        ({"emb_model": "Salesforce/SFR-Embedding-Mistral"}, "instruction"),
    ],
)
def test_what_has_no_native_form_is_refused_by_name(changes, named, tmp_path):
    with pytest.raises(UserError, match=f"cannot be imported: .*{named}"):
        import_checkpoint(write(tmp_path, "M-sft-bias", **changes))


def test_adapters_other_than_plain_lora_are_refused(tmp_path):
    folder = write(tmp_path, "M-sft-bias")
    for change, named in (
        ({"peft_type": "VERA"}, "hyper-VeRA"),
        ({"use_dora": True}, "use_dora"),
        ({"r": "8"}, "r should"),
        ({"use_rslora": 1}, "use_rslora should be true or false, not 1"),
    ):
        adapter = json.loads((folder / "adapter_config.json").read_text()) | change
        (folder / "changed").mkdir(exist_ok=True)
        for name in ("hypermod.pt", "args.yaml"):
            shutil.copy(folder / name, folder / "changed")
        (folder / "changed" / "adapter_config.json").write_text(json.dumps(adapter))
        with pytest.raises(UserError, match=named):
            import_checkpoint(folder, "changed")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task_encoder.mlp.3.weight": torch.zeros(4, 4)}, "task encoder is not linear"),
        ({"vera_A": torch.zeros(4, 4)}, "holds vera_A"),
        ({"heads.q_proj.weight": torch.zeros(24, 8)}, r"heads\.q_proj\.weight is \[24, 8\], not \[24, 7\]"),
        ({"heads.q_proj.bias": torch.zeros(23)}, r"heads\.q_proj\.bias is \[23\]"),
        ({"AB_offset.A.q_proj": torch.zeros(2, 8)}, "too few dimensions"),
        ({"AB_offset.A.q_proj": torch.zeros(2, 4, 8)}, r"AB_offset\.A\.q_proj is \[2, 4, 8\]"),
        ({"out_emb.q_proj.B": torch.zeros(1, 8)}, r"out_emb\.q_proj\.B"),
        ({"mixer.1.weight": torch.full((48, 12), float("nan"))}, r"mixer\.1\.weight holds values that are not finite"),
        ({"mixer.1.weight": torch.zeros(1, 1).expand(2**40, 2**20)}, "more than the file holds"),
        ({"mixer.1.weight": torch.zeros(32, 8, dtype=torch.int64)}, "LongStorage"),
        ({"mixer.1.weight": torch.zeros(32, 8).to_sparse()}, "_rebuild_sparse_tensor|LongStorage"),
        ({"mixer.1.weight": "text"}, "no tensor"),
        ({7: torch.zeros(1)}, "'7'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        import_checkpoint(write(tmp_path, "M-sft-bias", changes))


@pytest.mark.parametrize("key", ["heads.v_proj.weight", "AB_offset.B.v_proj", "mlp2.mlp.4.bias", "out_emb.v_proj.A"])
def test_missing_tensors_are_named(key, tmp_path):
    folder = write(tmp_path, "M-sft-bias")
    state = torch.load(folder / "hypermod.pt", weights_only=True)
    del state[key]
    torch.save(state, folder / "hypermod.pt")
    with pytest.raises(UserError, match=f"lacks {key}"):
        import_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hypernet_latent_size": 16}, "not fit args.yaml: task_encoder"),
        ({"hypernet_latent_size": 2**17}, "not fit args.yaml: task_encoder"),
        ({"hypernet_latent_size": 2}, "latent_size should be"),
        ({"head_in_size": 10**12}, "head_size should be"),
        ({"head_in_size": "wide"}, "head_in_size should be a whole number"),
        ({"shared_AB_head": "yes"}, "shared_AB_head should be true or false"),
        ({"shared_AB_head": False}, "does not fit args.yaml|lacks"),
        ({"learnable_pos_emb": True, "autoreg_gen": True}, r"lacks pos_emb\.0\.weight|does not fit"),
        ({"training_task": "dpo"}, "training_task should be sft or recon"),
        ({"training_task": "recon", "factorized": False, "pred_z_score": False, "delta_w_scaling": 0}, "above 0"),
        ({"target_modules": None}, "target_modules should be"),
        ({"target_modules": ["q_proj", "q_proj"]}, "target_modules should be"),
        ({"target_modules": "q_proj"}, "target_modules should be"),
        ({"target_modules": ["q_proj", ["v_proj"]]}, "target_modules is nested"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"lacks AB_offset\.A\.k_proj"),
        ({"target_modules": ["q_proj"]}, r"layer_type_encoder\.0\.weight is \[2, 3\], not \[1, 3\]"),
        ({"model_dir": "x" * 2000}, "model_dir is nested or long"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        import_checkpoint(write(tmp_path, "M-sft-bias", **changes))


# ---- damage and malice ----


class Malice:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Greed:
    """Asks for a terabyte where it is unpickled."""

    def __reduce__(self):
        return bytearray, (2**40,)


def deflate(folder: Path) -> None:
    path = folder / "hypermod.pt"
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def flip(folder: Path) -> None:
    """Change one byte in the middle, where the weights are."""
    content = bytearray((folder / "hypermod.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "hypermod.pt").write_bytes(content)


def replace_pickle(folder: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(folder / "hypermod.pt", "w") as archive:
        archive.writestr("hypermod/data.pkl", pickled)
        archive.writestr("hypermod/version", "3\n")


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content, encoding="latin-1")


def weights(content: object) -> Callable[[Path], object]:
    return lambda folder: torch.save(content, folder / "hypermod.pt")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without("hypermod.pt"), r"hypermod\.pt is missing"),
        (without("args.yaml"), r"args\.yaml is missing"),
        (without("adapter_config.json"), r"adapter_config\.json is missing"),
        (lambda f: os.truncate(f / "hypermod.pt", 20_000), r"hypermod\.pt is damaged"),
        (lambda f: os.truncate(f / "hypermod.pt", 0), r"hypermod\.pt is damaged"),
        (lambda f: os.truncate(f / "hypermod.pt", 2**40), "larger than 8 GiB"),
        (lambda f: os.truncate(f / "args.yaml", 2**21), r"args\.yaml is larger"),
        (lambda f: os.truncate(f / "adapter_config.json", 2**21), r"adapter_config\.json is larger"),
        (flip, r"hypermod\.pt is damaged"),
        (deflate, "is compressed"),
        (weights([torch.zeros(2)]), "no state dict"),
        (weights({}), "no state dict"),
        (weights({"a": Greed()}), "was not read: .*bytearray"),
        (lambda f: replace_pickle(f, b"\x80\x02}q\x00."), "no state dict"),
        (lambda f: replace_pickle(f, b"\x80\x02" + b"]" * 2**22 + b"."), "far more than a state dict"),
        (lambda f: replace_pickle(f, b"\x80\x02garbage"), r"hypermod\.pt is damaged"),
        (lambda f: torch.save({}, f / "hypermod.pt", _use_new_zipfile_serialization=False), "PyTorch 1.6 or newer"),
        (text("args.yaml", "- a\n- list\n"), "training_task should be"),
        (text("args.yaml", ""), "training_task should be"),
        (text("args.yaml", "a: [1\n"), r"args\.yaml is damaged"),
        (text("args.yaml", "\x00\xff"), r"args\.yaml is damaged"),
        (text("args.yaml", "[" * 10_000), r"args\.yaml is damaged"),
        (text("args.yaml", "head_in_size: !!python/object/apply:os.mkdir [hacked]\n"), r"args\.yaml is damaged"),
        (text("args.yaml", "head_in_size: !!int x\n"), r"args\.yaml is damaged"),
        (text("args.yaml", LAUGHS + "training_task: sft\ntarget_modules: *a59\n"), "target_modules is nested"),
        (text("args.yaml", LAUGHS.replace("[x, x]", "{x: 1}") + "<<: [*a59, *a58]\n"), "training_task should be"),
        (text("adapter_config.json", "{"), r"adapter_config\.json is damaged"),
        (text("adapter_config.json", "[]"), "peft_type LORA"),
    ],
)
def test_a_damaged_or_hostile_folder_gets_one_sentence(damage, sentence, tmp_path, monkeypatch):
    folder = write(tmp_path / "checkpoint", "M-sft-bias")
    damage(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence) as raised:
        import_checkpoint(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_with_code_is_not_run(archive, tmp_path):
    folder, target = write(tmp_path / "checkpoint", "M-sft-bias"), tmp_path / "hacked"
    if archive:
        torch.save({"a": Malice(target)}, folder / "hypermod.pt")
    else:
        (folder / "hypermod.pt").write_bytes(pickle.dumps({"a": Malice(target)}))
    with pytest.raises(UserError, match=r"was not read: .*posix\.mkdir" if archive else "damaged"):
        import_checkpoint(folder)
    assert not target.exists()
