import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyperlora.errors import UserError
from hyperlora.lora import Adapter
from training.parts import library as module
from training.parts.adapters import save_adapters
from training.parts.library import Library, pack, write_library
from training.tasks import Task


@pytest.fixture
def folder(make_adapter, tmp_path) -> Path:
    """Three LoRAs at three scales, and one of all three tasks."""
    tasks = [Task(name, [f"Do {name}."]) for name in ("first", "second", "third")]
    adapters = {
        "first": make_adapter(1),
        "second": make_adapter(2, alpha=32.0),
        "third": make_adapter(3, use_rslora=False),
        "average": make_adapter(4),
    }
    save_adapters(tmp_path / "loras", adapters, {t.name: [t] for t in tasks} | {"average": tasks})
    return tmp_path / "loras"


def test_every_lora_has_its_delta_w_at_the_scale_of_the_library(folder, tmp_path):
    library = pack(folder, tmp_path / "library.safetensors")
    assert library.names == library.tasks == ["first", "second", "third"]  # the LoRA of all tasks is no target
    assert library.target_modules == {"q_proj": (64, 64), "v_proj": (64, 32)} and library.scale == 16 / 8**0.5
    for row, name in enumerate(library.names):
        adapter = Adapter.from_pretrained(folder / name)
        for projection in library.target_modules:
            A, B = library.read(projection, slice(1, 2), [row])
            torch.testing.assert_close(library.scale * B[0, 0] @ A[0, 0], adapter.delta_w(projection, 1))


def test_pieces_are_those_of_the_whole_file(folder, tmp_path):
    library = pack(folder, tmp_path / "library.safetensors")
    tensors = load_file(tmp_path / "library.safetensors")  # safetensors' own reader
    for rows in ([0, 2], [1, 2], [0, 0, 2], [2, 1, 0]):
        A, B = library.read("v_proj", slice(0, 2), rows)
        torch.testing.assert_close(A, tensors["v_proj.A"].transpose(0, 1)[rows])
        torch.testing.assert_close(B, tensors["v_proj.B"].transpose(0, 1)[rows].mT)


def test_statistics_are_those_of_each_entry(folder, tmp_path):
    library = pack(folder, tmp_path / "library.safetensors")
    mean, std = library.statistics()
    everything = library.read("q_proj", slice(0, 2), range(3))
    for side in (0, 1):
        expected = torch.std_mean(everything[side], 0, correction=0)
        torch.testing.assert_close((std["q_proj"][side], mean["q_proj"][side]), expected)
    A, B = everything
    norms = torch.linalg.matrix_norm(library.scale * B @ A).square().mean(0).sqrt()
    torch.testing.assert_close(library.delta_norms()[0], norms)


def test_only_the_tasks_that_are_asked_for(folder, tmp_path):
    assert pack(folder, tmp_path / "some.safetensors", ["third", "first"]).names == ["first", "third"]
    with pytest.raises(UserError, match="of one task of these"):
        pack(folder, tmp_path / "none.safetensors", ["fourth"])


def test_a_folder_without_an_index_is_a_library_too(folder, tmp_path):
    (folder / "index.json").unlink()
    assert pack(folder, tmp_path / "library.safetensors").names == ["average", "first", "second", "third"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: replace(a, weights={m: (A[:, :4], B[..., :4]) for m, (A, B) in a.weights.items()}), "third has A"),
        (lambda a: replace(a, weights={"q_proj": a.weights["q_proj"]}), "third has the modules"),
        (lambda a: replace(a, base_model="other"), "third has the base"),
    ],
)
def test_a_lora_that_does_not_fit_is_named_and_nothing_is_written(folder, tmp_path, change, message):
    change(Adapter.from_pretrained(folder / "third")).save_pretrained(folder / "third")
    with pytest.raises(UserError, match=message):
        pack(folder, tmp_path / "out" / "library.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_lora_is_named(folder, tmp_path):
    (folder / "second" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="LoRA second cannot be used"):
        pack(folder, tmp_path / "library.safetensors")


def test_an_index_may_not_lead_out_of_its_folder(folder, tmp_path):
    (folder / "index.json").write_text(json.dumps({"../elsewhere": ["first"]}))
    with pytest.raises(UserError, match=r"index\.json must hold"):
        pack(folder, tmp_path / "library.safetensors")


def test_a_file_is_written_again_only_when_its_loras_changed(folder, make_adapter, tmp_path, monkeypatch):
    before = pack(folder, tmp_path / "library.safetensors").read("q_proj", slice(0, 1), [0])[0].clone()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_library", None)  # cannot be called
        pack(folder, tmp_path / "library.safetensors")
    make_adapter(9, rank=8).save_pretrained(folder / "first")
    assert not torch.equal(before, pack(folder, tmp_path / "library.safetensors").read("q_proj", slice(0, 1), [0])[0])


def test_a_full_disk_is_one_sentence(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        pack(folder, tmp_path / "out" / "library.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def resident_file_pages() -> int:
    """Bytes of mapped files that are in this process's memory; those of a tmpfs count as shared memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssShmem")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much of a file is in memory")
def test_no_more_is_read_than_asked_for(tmp_path):
    """A library of 36 MB, of which one layer of a module is a 24th."""
    layers, r, d = 24, 8, 1024

    def adapters():
        for seed in range(24):
            torch.manual_seed(seed)
            yield Adapter({"q_proj": (torch.randn(layers, r, d), torch.randn(layers, d, r))}, 16.0, True)

    write_library(tmp_path / "large.safetensors", {f"task{i}": f"task{i}" for i in range(24)}, adapters())
    size = (tmp_path / "large.safetensors").stat().st_size
    before = resident_file_pages()
    library = Library(tmp_path / "large.safetensors")
    A, B = library.read("q_proj", slice(5, 6), range(24))
    assert A.sum().isfinite() and B.sum().isfinite()
    one_layer = resident_file_pages() - before
    A, B = library.read("q_proj", slice(0, layers), range(24))
    assert A.sum().isfinite() and B.sum().isfinite()
    everything = resident_file_pages() - before
    assert one_layer < size / 6 and everything > size / 2
