import torch

from training.parts import digest as module
from training.parts.digest import base_digest, digest, tensor_digest


def test_the_content_counts_and_not_the_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "a.txt").write_bytes(b"content")
    found = digest(tmp_path / "one")
    assert len(found) == 8 and found == digest(tmp_path / "two")
    (tmp_path / "two" / "checkpoints").mkdir()
    (tmp_path / "two" / "checkpoints" / "b.txt").write_bytes(b"of a run that goes on")
    (tmp_path / "two" / ".hidden").write_bytes(b"")
    assert found == digest(tmp_path / "two")
    changes = [
        lambda folder: (folder / "inside" / "a.txt").write_bytes(b"c0ntent"),
        lambda folder: (folder / "inside" / "a.txt").rename(folder / "inside" / "b.txt"),
        lambda folder: (folder / "inside" / "c.txt").write_bytes(b""),
        lambda folder: (folder / "inside" / "b.txt").write_bytes(b"c0ntent and more"),
    ]
    for change in changes:
        before = digest(tmp_path / "two")
        change(tmp_path / "two")
        assert digest(tmp_path / "two") != before


def test_of_a_large_file_every_part_counts(tmp_path, monkeypatch):
    """Its length and evenly spread pieces, the first and the last among them."""
    monkeypatch.setattr(module, "PIECE", 10)
    monkeypatch.setattr(module, "PIECES", 8)
    large = bytes(range(250)) * 4
    (tmp_path / "large").write_bytes(large)
    before = digest(tmp_path / "large")
    for at in (0, 5, 141, 999):
        (tmp_path / "large").write_bytes(large[:at] + bytes([large[at] ^ 1]) + large[at + 1 :])
        assert digest(tmp_path / "large") != before
    (tmp_path / "large").write_bytes(large + b"0")
    assert digest(tmp_path / "large") != before


def test_of_several_the_order_counts(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert digest(tmp_path / "a", tmp_path / "b") != digest(tmp_path / "b", tmp_path / "a")


def test_a_base_is_known_by_its_files_or_its_commit(tiny_model, tiny_base):
    files = (path for end in ("json", "jinja", "safetensors") for path in sorted(tiny_base.glob(f"*.{end}")))
    assert base_digest(tiny_model) == digest(*files)
    tiny_model.config.name_or_path, tiny_model.config._commit_hash = "owner/name", "abc"
    assert base_digest(tiny_model) == "owner/name@abc"
    tiny_model.config.name_or_path = str(tiny_base / "model.safetensors")  # a file, as GGUF is
    assert base_digest(tiny_model) == digest(tiny_base / "model.safetensors")


def test_tensors_are_known_by_their_values():
    ones, zeros = torch.ones(3), torch.zeros(3)
    assert tensor_digest([ones, zeros]) == tensor_digest([ones.clone(), zeros.clone()])
    assert len({tensor_digest(some) for some in ([ones, zeros], [zeros, ones], [ones], [])}) == 4
