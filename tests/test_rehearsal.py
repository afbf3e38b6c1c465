"""The rehearsal at a tiny size: files in the real formats, and everything from them alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jinja2 import TemplateError
from safetensors import safe_open
from tokenizers import Tokenizer

from benchmarks import rehearsal
from benchmarks.first_token import start_page
from hyperlora.base import load_base
from hyperlora.errors import UserError
from hyperlora.export import export_zip
from hyperlora.memory import SHAPES

SHAPE = rehearsal.base_shape(layers=2, hidden=128)
SHARD = 8_200_000  # bytes: one of the two large matrices, and a layer


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """A hypernetwork in the public format is kept in the cache as a native one once it has been imported."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    rehearsal.write_base(folder / "base", SHAPE, SHARD)
    rehearsal.write_checkpoint(folder / "hyperlora", SHAPE)
    return folder


def test_the_full_size_is_mistrals() -> None:
    assert rehearsal.base_shape() == SHAPES["mistral-7b"]


def test_the_index_names_every_tensor_and_no_shard_is_too_large(folder: Path) -> None:
    index = json.loads((folder / "base" / rehearsal.INDEX).read_text())
    files = sorted((folder / "base").glob("*.safetensors"))
    assert len(files) > 2
    sizes, found = [], {}
    for path in files:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        found |= dict.fromkeys(tensors, path.name)
    assert found == index["weight_map"]
    assert sum(sizes) == index["metadata"]["total_size"] == 2 * SHAPE.parameters
    assert max(sizes) <= SHARD


def test_the_base_loads_whole(folder: Path) -> None:
    model, _ = load_base(folder / "base", dtype=torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == SHAPE.parameters
    assert model.config.get_text_config().sliding_window is None
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)


def test_the_tokenizer_is_of_llamas_kind(folder: Path) -> None:
    _, tokenizer = load_base(folder / "base", dtype=torch.bfloat16)
    plain = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
    text = "one  two, wörld 🎈\nINST"
    ids = tokenizer(text).input_ids
    assert ids == plain.encode(text).ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x00>"]) == [0, 1, 2, 3]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == len(plain.get_vocab()) == 32000
    assert tokenizer.convert_tokens_to_ids("[INST]") == tokenizer.unk_token_id  # plain text, no token of its own


def test_the_chat_template_has_mistrals_form(folder: Path) -> None:
    _, tokenizer = load_base(folder / "base", dtype=torch.bfloat16)
    chat = [("user", "One."), ("assistant", "Two."), ("user", "Three.")]
    messages = [{"role": role, "content": content} for role, content in chat]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s>[INST] One. [/INST]Two.</s>[INST] Three. [/INST]"
    with pytest.raises(TemplateError, match="take turns"):
        tokenizer.apply_chat_template(messages[:1] * 2, tokenize=False)


def test_a_rehearsal_ends_with_peft_giving_the_same_logits(folder: Path) -> None:
    rows = dict(rehearsal.rehearse(folder, "cpu", "float32", tokens=2))
    assert float(rows["logits, ours against PEFT's, of the largest"]) < 1e-4
    assert float(rows["logits, without the adapter against with it"]) > 1e-2


def test_other_logits_end_a_rehearsal_with_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "export_zip", lambda adapter, path: export_zip(adapter.scaled(0.5), path))
    with pytest.raises(SystemExit, match="PEFT's logits differ"):
        rehearsal.rehearse(folder, "cpu", "float32", tokens=2)


def test_the_page_is_started_and_used(folder: Path) -> None:
    paths = [f"--base={folder / 'base'}", f"--hyperlora={folder / 'hyperlora'}", "--device=cpu"]
    *_, answer = start_page(paths)
    assert answer


def test_a_rehearsal_that_does_not_fit_the_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "disk_usage", lambda folder: SimpleNamespace(free=1e6))
    with pytest.raises(UserError, match=r"The base takes 14\.5 GB and .* has 1 MB free"):
        rehearsal.main(["make", str(tmp_path / "new")])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        rehearsal.main(["make", str(tmp_path / "file"), "--checkpoint-only"])
