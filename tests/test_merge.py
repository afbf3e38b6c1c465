"""A merged model: transformers gives it the logits of the adapter over the base; it is whole, or not there."""

import errno
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hyperlora import export as exports
from hyperlora import merge
from hyperlora.errors import UserError
from hyperlora.export import export, export_base, export_name, export_size
from hyperlora.hub import Cancelled
from tests.gguf_files import save_folder, write_gguf
from tests.test_gguf import KINDS, logits, random_model

FORMS = ("merged", "merged-gguf")


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """Nothing of this is kept."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A random Llama in float32."""
    return save_folder(tmp_path / "base", random_model(KINDS["llama"]))


@pytest.fixture
def pipe(base: Path, open_pipe):
    return open_pipe(base)


def test_the_logits_are_those_of_peft(base, pipe, adapter_for, tmp_path):
    adapter = adapter_for(pipe).scaled(-0.75)
    folder = export(pipe, adapter, "merged", tmp_path / "out")
    export(pipe, adapter, "peft", tmp_path / "peft")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "peft").eval()
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert (logits(found) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.1
    torch.testing.assert_close(logits(found), logits(peft), rtol=0, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("one two") == pipe.tokenizer.encode("one two")
    assert found.generation_config.eos_token_id == [2]


def test_the_chat_template_is_that_of_the_training(base, pipe, adapter_for, tmp_path):
    pipe.tokenizer.chat_template = "{{ messages[0]['content'] }} !"
    folder = export(pipe, adapter_for(pipe), "merged", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(folder).chat_template == pipe.tokenizer.chat_template


def test_a_base_that_was_a_quantised_file(open_pipe, adapter_for, tmp_path):
    """Its weights are dequantised once, for the chat and for this."""
    pipe = open_pipe(write_gguf(tmp_path / "model.gguf", random_model(KINDS["llama"]), quantization="Q4_1"))
    adapter = adapter_for(pipe)
    found = AutoModelForCausalLM.from_pretrained(export(pipe, adapter, "merged", tmp_path / "out"))
    with torch.no_grad(), pipe.adapted.use([pipe.adapted.load(adapter)]):
        torch.testing.assert_close(logits(found), logits(pipe.adapted.model), rtol=0, atol=1e-4)


def test_weights_are_added_in_float32_and_rounded_once(base, pipe, adapter_for, tmp_path):
    """Of a base in bfloat16 too; a base that is held in other bits for the chat is read from its files."""
    halves = {name: values.bfloat16() for name, values in load_file(base / "model.safetensors").items()}
    save_file(halves, base / "model.safetensors", {"format": "pt"})
    adapter = adapter_for(pipe)
    for dtype in ("float32", "bfloat16"):
        folder = export(pipe, adapter, "merged", tmp_path / dtype, dtype=dtype)
        name = "model.layers.1.self_attn.q_proj.weight"
        found = load_file(folder / "model.safetensors")[name]
        expected = halves[name].float() + adapter.delta_w("q_proj", 1)
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-6 if dtype == "float32" else 0)
        assert str(found.dtype) == f"torch.{dtype}"
        assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_large_models_are_in_several_files_and_16_bits(base, pipe, adapter_for, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "SHARD", 100_000)
    monkeypatch.setattr(merge, "LARGE", 1000)
    adapter = adapter_for(pipe)
    folder = export(pipe, adapter, "merged", tmp_path / "out")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert found.dtype == torch.bfloat16
    with torch.no_grad(), pipe.adapted.use([pipe.adapted.load(adapter)]):
        torch.testing.assert_close(logits(found).float(), logits(pipe.adapted.model), rtol=0, atol=0.3)
    again = save_folder(tmp_path / "again", random_model(KINDS["llama"]))
    for path in again.glob("*.safetensors"):
        path.unlink()
    for path in folder.glob("model*"):
        path.rename(again / path.name)
    pipe.files = again  # a base in several files
    assert export_size(pipe, adapter, "merged") == export_size(pipe, adapter, "merged-gguf") > 0
    assert export(pipe, adapter, "merged-gguf", tmp_path / "gguf").is_dir()


@pytest.mark.parametrize("form", ["peft", "gguf", *FORMS])
def test_a_zip_holds_what_the_folder_does(form, pipe, adapter_for, tmp_path):
    adapter = adapter_for(pipe, description="Sort the words.")
    folder = export(pipe, adapter, form, tmp_path / "new" / "out")
    path = export(pipe, adapter, form, tmp_path / "new" / export_name(adapter, form))
    assert path.name == ("sort-the-words.zip" if form == "peft" else f"sort-the-words-{form}.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.filename: info.file_size for info in archive.infolist()} == {
            file.name: file.stat().st_size for file in folder.iterdir()
        }
        assert archive.read("README.md") == (folder / "README.md").read_bytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(["out", path.name])


@pytest.mark.parametrize("form", ["gguf", *FORMS])
def test_the_size_is_known_before(form, pipe, adapter_for, tmp_path):
    adapter, heard = adapter_for(pipe), []
    size = export_size(pipe, adapter, form)
    folder = export(pipe, adapter, form, tmp_path / "out", lambda done, size: heard.append((done, size)))
    weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".gguf", ".safetensors"))
    assert size <= weights < size + 50_000
    assert heard[0] == (0, size) and heard[-1] == (size, size)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert len(heard) > 20 or form == "gguf"


# ---- whole or not there ----


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_one_that_is_cancelled_leaves_nothing(form, name, pipe, adapter_for, tmp_path):
    def report(done: float, size: float) -> None:
        if done > size / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        export(pipe, adapter_for(pipe), form, tmp_path / name, report)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_fills_leaves_nothing(form, pipe, adapter_for, tmp_path, monkeypatch):
    def fail(*arguments) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exports, "_write_text", fail)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\): free some space"):
        export(pipe, adapter_for(pipe), form, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_is_there_is_not_written_over(pipe, adapter_for, tmp_path):
    (tmp_path / "out").mkdir()
    export(pipe, adapter_for(pipe), "gguf", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="out is not an empty folder: choose another name"):
        export(pipe, adapter_for(pipe, rank=2), "gguf", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("form", FORMS)
def test_memory_and_disk_are_looked_at_first(form, pipe, adapter_for, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "device_named", lambda name: SimpleNamespace(free=1000.0))
    with pytest.raises(UserError, match=r"Writing this model needs \d MB of memory, and 0 MB is free: close"):
        export(pipe, adapter_for(pipe), form, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(exports.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    with pytest.raises(UserError, match=r"of \d MB does not fit: the disk has 1.0 GB free. Make room"):
        export(pipe, adapter_for(pipe), form, tmp_path / "out.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


# ---- what cannot be merged ----


def test_a_pipeline_whose_files_are_not_known(pipe, adapter_for, tmp_path):
    pipe.files = None
    with pytest.raises(UserError, match="The files of the base model are not known here"):
        export_size(pipe, adapter_for(pipe), "merged")


def test_files_that_hold_quantised_weights(base, pipe, adapter_for, tmp_path):
    state = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(state | {name: state[name].to(torch.int8)}, base / "model.safetensors")
    with pytest.raises(UserError, match=r"q_proj.weight is held as I8: merging needs its weights in float"):
        export(pipe, adapter_for(pipe), "merged", tmp_path / "out")


def test_an_adapter_of_another_base(base, pipe, adapter_for, tmp_path):
    deep = adapter_for(pipe)
    deep.weights = {name: (A.repeat(2, 1, 1), B.repeat(2, 1, 1)) for name, (A, B) in deep.weights.items()}
    with pytest.raises(UserError, match=r"files have no model.layers.2.self_attn.q_proj.weight, which the adapter"):
        export(pipe, deep, "merged", tmp_path / "out")
    wide = adapter_for(pipe)
    wide.weights = {name: (A.repeat(1, 1, 2), B) for name, (A, B) in wide.weights.items()}
    with pytest.raises(UserError, match=r"The adapter does not fit the base model's model.layers.0.self_attn.q_proj"):
        export(pipe, wide, "merged", tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
def test_values_that_float16_has_not(form, pipe, adapter_for, tmp_path):
    with pytest.raises(UserError, match="does not fit into float16: choose bfloat16 or float32"):
        export(pipe, adapter_for(pipe).scaled(1e6), form, tmp_path / "out", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_forms_and_dtypes_that_there_are_not(pipe, adapter_for, tmp_path):
    with pytest.raises(UserError, match="There is no form 'onnx' of an export; there is peft, gguf, merged"):
        export(pipe, adapter_for(pipe), "onnx", tmp_path / "out")
    with pytest.raises(UserError, match="The dtype 'int4' is not known"):
        export_size(pipe, adapter_for(pipe), "merged", "int4")
    with pytest.raises(UserError, match="There is no folder 'nowhere/at/all'"):
        export_base("nowhere/at/all", tmp_path / "model.gguf")
