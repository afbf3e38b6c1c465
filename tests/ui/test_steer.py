"""Blends and imported adapters, as the page asks for them."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

import hyperlora
from hyperlora import model as kept
from hyperlora.export import export_zip
from hyperlora.lora import Adapter
from hyperlora.model import Model
from hyperlora.recipe import Recipe
from hyperlora.ui.session import read_adapter
from hyperlora.ui.steer import Steer
from tests.ui.visitor import ADD, REVERSE


def steer_recipe(*parts: tuple[float, dict], **said: object) -> str:
    return json.dumps({"blend": parts} | said)


def chosen(entry: dict, strength: float = 1) -> str:
    """A shelf's entry, as a page sends it when it is selected."""
    return json.dumps({"name": "", "strength": strength} | entry)


def test_a_blend_is_the_weighted_sum_of_its_adapters(model: Model, pipe: hyperlora.Pipeline) -> None:
    asked = steer_recipe((0.5, {"description": ADD}), (-1.5, {"description": REVERSE, "strength": 2}), strength=0.5)
    entry = json.loads(Steer(model).blend(asked))
    assert entry["description"] == f"0.5 * “{ADD}” + -1.5 * 2 * (“{REVERSE}”)" and entry["strength"] == 0.5
    adapter, add, reverse = model.of(read_adapter(chosen(entry))), pipe.adapt(ADD), pipe.adapt(REVERSE)
    for module in add.weights:
        expected = 0.5 * (0.5 * add.delta_w(module, 0) - 3 * reverse.delta_w(module, 0))
        torch.testing.assert_close(adapter.delta_w(module, 0), expected)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("{", "not valid JSON"),
        (None, "must be text"),
        (steer_recipe((1, {"description": ADD})), "2 to 8"),
        (steer_recipe((1, {"description": ADD}), (9, {"description": REVERSE})), "weight should be a number"),
        (steer_recipe((1, {"description": ADD}), (None, {"description": REVERSE})), "weight should be a number"),
        (steer_recipe((1, {"description": ADD}), (1, {"upload": "0" * 64})), "upload it again"),
        (steer_recipe(*[(1, {"description": ADD})] * 9), "2 to 8"),
    ],
)
def test_a_blend_that_cannot_be_made_says_why(model: Model, recipe: object, sentence: str) -> None:
    assert sentence in json.loads(Steer(model).blend(recipe))["error"]


def exported(model: Model, folder: Path, description: str) -> Path:
    return export_zip(model.pipe.adapt(description), folder / "mine.zip")


def test_an_imported_zip_is_the_adapter_that_was_exported(model: Model, tmp_path: Path) -> None:
    steer, archive = Steer(model), exported(model, tmp_path, REVERSE)
    entry = json.loads(steer.take(str(archive)))
    assert (entry["name"], entry["description"]) == ("mine", REVERSE)
    assert not archive.exists()
    taken, made = model.of(read_adapter(chosen(entry, 0.5))), model.adapter(Recipe(REVERSE)).scaled(0.5)
    for module in made.weights:
        torch.testing.assert_close(taken.delta_w(module, 1), made.delta_w(module, 1))
    digest = entry["recipe"]["upload"]
    assert json.loads(steer.missing(json.dumps([digest, "0" * 64]))) == ["0" * 64]
    for damaged in (None, "", "[", "{}", "[1]", '["a"]'):
        assert steer.missing(damaged) == "[]"


def test_a_zip_that_is_no_adapter_says_why_and_goes(model: Model, tmp_path: Path) -> None:
    for name, data, sentence in (
        ("adapter_config.json", b"{}", "holds no 'adapter_model.safetensors'"),
        ("adapter_model.bin", b"\x80\x04.", "could run code"),
        ("../adapter_config.json", b"{}", "leads out of it"),
        (None, b"no zip", "no zip"),
    ):
        path = tmp_path / "bad.zip"
        if name is None:
            path.write_bytes(data)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(name, data)
        assert sentence in json.loads(Steer(model).take(str(path)))["error"]
        assert not path.exists()


def test_uploads_are_kept_in_a_bounded_memory(
    model: Model,
    make_adapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "MAX_BYTES", 3 * kept._size(make_adapter(0)))
    brought = iter([make_adapter(seed=seed) for seed in range(5)])
    monkeypatch.setattr(Adapter, "from_pretrained", None)
    monkeypatch.setattr(model.pipe, "load_adapter", lambda path: next(brought))
    recipes = [model.take(Path("a.zip"))[0] for _ in range(5)]
    assert [model.has(recipe) for recipe in recipes] == [False, False, True, True, True]
