"""What leaves the page: files, models and repositories, each its visitor's alone."""

import asyncio
import io
import json
import logging
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load
from transformers import AutoModelForCausalLM

import app
import hyperlora
from hyperlora import export as library
from hyperlora.export import FORMS
from hyperlora.model import Model
from hyperlora.ui import export as module
from hyperlora.ui.export import OAUTH, Export
from hyperlora.ui.page import build_page
from tests.hub_server import HOSTS, SIGNED_IN, TOKEN, Hub
from tests.ui.visitor import ADD, REVERSE, ask_server, serving, shelved, wait_until

SLUG = "reverse-the-order-of-the-words"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Gradio has its files."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return tmp_path / "gradio"


@pytest.fixture
def exports(model: Model, folder: Path) -> Export:
    return Export(model)


class Writer:
    """Stands for what writes a file: it is as far as it is told to be, and whole with None."""

    def __init__(self):
        self.steps, self.begun = SimpleQueue(), threading.Semaphore(0)

    def __call__(self, pipe: object, adapter: object, form: str, path: Path, report: Callable) -> Path:
        self.begun.release()
        for done in iter(self.steps.get, None):
            report(done, 100)
        path.write_text("whole")
        return path


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    writer = Writer()
    monkeypatch.setattr(library, "export", writer)
    monkeypatch.setattr(module, "TELL", 0.01)
    return writer


def asked(description: str = REVERSE, form: str = "peft", strength: float = 1, **more: object) -> str:
    return json.dumps({"adapter": shelved(description, "", strength), "form": form} | more)


def by(visitor: str) -> SimpleNamespace:
    return SimpleNamespace(session_hash=visitor)


def told(step: tuple) -> dict:
    return json.loads(step[0])


def made(exports: Export, asked: str, visitor: str = "one") -> Path:
    *_, (text, path) = exports.make(asked, by(visitor))
    assert json.loads(text) == {"name": Path(path).name}
    return Path(path)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ---- files, each opened by what it is for ----


def test_the_zip_is_the_adapter_in_plain_peft(
    exports: Export, pipe: hyperlora.Pipeline, tiny_base: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(made(exports, asked(strength=0.5))) as archive:
        archive.extractall(tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    ids = torch.tensor([pipe.tokenizer.encode("one two three")])
    slot = pipe.adapted.load(pipe.adapt(REVERSE).scaled(0.5))
    with torch.no_grad(), pipe.adapted.use([slot]):
        ours = pipe.adapted.model(ids).logits
    pipe.adapted.unload(slot)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours, rtol=0, atol=1e-4)


def test_the_merged_model_has_the_adapter_at_its_strength(
    exports: Export, pipe: hyperlora.Pipeline, tiny_base: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(made(exports, asked(form="merged", strength=-0.5))) as archive:
        archive.extractall(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    adapter = pipe.adapt(REVERSE).scaled(-0.5)
    for i, (ours, theirs) in enumerate(zip(merged.model.layers, base.model.layers, strict=True)):
        wanted = theirs.self_attn.q_proj.weight + adapter.delta_w("q_proj", i)
        torch.testing.assert_close(ours.self_attn.q_proj.weight, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["gguf", "merged-gguf"])
def test_a_gguf_file_has_its_modelfile_beside_it(exports: Export, tmp_path: Path, form: str) -> None:
    with zipfile.ZipFile(made(exports, asked(form=form))) as archive:
        archive.extractall(tmp_path / "gguf")
    (path,) = (tmp_path / "gguf").glob("*.gguf")
    kind = bytes(GGUFReader(path).fields["general.type"].parts[-1]).decode()
    assert kind == ("adapter" if form == "gguf" else "model")
    assert path.name in (tmp_path / "gguf" / "Modelfile").read_text()


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_would_be_is_said_before_it_is_made(exports: Export, form: str) -> None:
    said = json.loads(exports.look(asked(form=form), by("one")))
    assert said["name"] == made(exports, asked(form=form)).name and said["size"] == "under 1 MB"
    assert said["commands"] and all(said["name"].removesuffix(".zip") in text for _, text in said["commands"])


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (json.dumps({"adapter": "", "form": "peft"}), "Select an adapter first"),
        (asked(form="exe"), "What the page kept"),
        (json.dumps({"form": "peft"}), "What the page kept"),
        (asked(strength=9), "The strength must be a number"),
        ("[", "What the page kept"),
        (None, "What the page kept"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(exports: Export, folder: Path, asked: object, sentence: str) -> None:
    assert sentence in json.loads(exports.look(asked, by("one")))["error"]
    (step,) = exports.make(asked, by("one"))
    assert sentence in told(step)["error"] and not folder.exists()


def test_an_upload_that_is_gone_is_one_sentence(exports: Export) -> None:
    recipe = {"upload": "0" * 64}
    adapter = json.dumps({"name": "mine", "description": "Mine.", "strength": 1, "recipe": recipe})
    assert (
        "upload it again"
        in json.loads(exports.look(json.dumps({"adapter": adapter, "form": "gguf"}), by("one")))["error"]
    )


# ---- a file that takes a while ----


def test_progress_is_told_until_the_file_is_there(exports: Export, writer: Writer) -> None:
    steps = exports.make(asked(form="merged"), by("one"))
    assert told(next(steps)) == {"done": 0, "size": 0}
    writer.steps.put(30)
    wait_until(lambda: told(next(steps)) == {"done": 30, "size": 100})
    writer.steps.put(None)
    *_, (text, path) = steps
    assert json.loads(text) == {"name": f"{SLUG}-merged.zip"} and Path(path).read_text() == "whole"


@pytest.mark.parametrize("how", ["stop", "leave", "close"])
def test_what_nobody_waits_for_is_not_written(exports: Export, writer: Writer, folder: Path, how: str) -> None:
    """The visitor cancels, or leaves, or their connection is lost."""
    steps = exports.make(asked(form="merged"), by("one"))
    next(steps)
    if how == "close":
        steps.close()
    elif how == "stop":
        asyncio.run(exports.stop(by("one")))
    else:
        exports.leave("one")
    writer.steps.put(30)
    if how != "close":
        *_, last = steps
        assert told(last) == {"error": "Cancelled."}
    wait_until(lambda: exports._merging.acquire(blocking=False))
    exports._merging.release()
    assert list(folder.iterdir()) == []
    writer.steps.put(None)
    assert made(exports, asked(form="merged")).read_text() == "whole"


def test_a_visitor_has_one_file_made_at_a_time_and_one_model_is_made_for_all(exports: Export, writer: Writer) -> None:
    steps = exports.make(asked(form="merged"), by("one"))
    next(steps)
    (again,) = exports.make(asked(), by("one"))
    assert "A file is being made for you already" in told(again)["error"]
    (other,) = exports.make(asked(form="merged-gguf"), by("two"))
    assert "Another visitor's model is being made" in told(other)["error"]
    writer.steps.put(None)
    writer.steps.put(None)
    made(exports, asked(), "two")
    *_, last = steps
    assert "name" in told(last)


def test_a_host_may_write_no_models(model: Model, folder: Path) -> None:
    exports = Export(model, merges=False)
    for form in ("merged", "merged-gguf"):
        (step,) = exports.make(asked(form=form), by("one"))
        assert "This server writes no merged models" in told(step)["error"] and not folder.exists()
    for merges in (True, False):
        assert ("Merged model" in json.dumps(build_page(model, merges=merges).get_config_file())) is merges


@pytest.mark.parametrize(
    ("arguments", "space", "merges"),
    [
        ([], "", True),
        (["--host", "::1"], "", True),
        (["--host", "localhost"], "", True),
        (["--host", "0.0.0.0"], "", False),
        (["--host", "example.org"], "", False),
        (["--host", "0.0.0.0", "--merge", "yes"], "", True),
        (["--merge", "no"], "", False),
        ([], "ada/space", False),
    ],
)
def test_models_are_written_where_the_page_is_this_machine_s_alone(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], space: str, merges: bool
) -> None:
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    monkeypatch.setenv("SPACE_ID", space)
    assert app.merges(app.parse_arguments(arguments)) is merges


# ---- whose a file is, and when it goes ----


def test_a_file_goes_with_its_visitor_or_with_their_next_one(exports: Export, folder: Path) -> None:
    one, two = made(exports, asked(), "one"), made(exports, asked(), "two")
    assert one.name == two.name and sorted(files(folder)) == sorted([one, two])
    next_one = made(exports, asked(ADD), "one")
    assert sorted(files(folder)) == sorted([next_one, two])
    exports.leave("one")
    exports.leave("one")
    assert files(folder) == [two]
    two.unlink()  # as Gradio does after an hour
    made(exports, asked(), "three")
    assert len(list(folder.iterdir())) == 1


def test_the_page_serves_the_file_itself_until_the_visitor_leaves(model: Model, folder: Path) -> None:
    with serving(model) as url, httpx.Client(base_url=url, trust_env=False, timeout=300) as client:
        _, archive = ask_server(url, "make", asked())
        assert files(folder) == [Path(archive["path"])]  # no copy
        found = client.get(archive["url"])
        assert found.headers["content-disposition"] == f'attachment; filename="{SLUG}.zip"'
        assert zipfile.ZipFile(io.BytesIO(found.content)).testzip() is None
        assert client.post("leave?abcd").status_code == 200 and files(folder)  # somebody else
        assert client.post("leave?abc").status_code == 200 and not files(folder)
        assert client.get(archive["url"]).status_code == 403


# ---- to the Hub ----


def pushed(exports: Export, token: object = TOKEN, login: gr.OAuthToken | None = None, **said: object) -> dict:
    """What is said at the end of a push; nothing is ever put back in place of the token."""
    first, (text, rest) = exports.push(asked(**{"name": SLUG, "strength": 0.5} | said), token, login)
    assert first == (json.dumps({"pushing": True}), "") and rest == ""
    return json.loads(text)


def test_the_adapter_is_pushed_as_it_would_be_downloaded(exports: Export, hub_server: Hub) -> None:
    assert pushed(exports) == {"url": f"{hub_server.url}/ada/{SLUG}"}
    repo, weights = hub_server.repos[f"ada/{SLUG}"], "adapter_model.safetensors"
    del repo["files"][".gitattributes"]
    with zipfile.ZipFile(made(exports, asked(strength=0.5))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    sent, wanted = load(repo["files"].pop(weights)), load(files.pop(weights))
    assert repo == {"private": True, "files": files}
    assert sent.keys() == wanted.keys() and all(torch.equal(sent[name], wanted[name]) for name in wanted)
    assert HOSTS not in str(hub_server.requests)
    assert pushed(exports, name="ada/other", public=True) == {"url": f"{hub_server.url}/ada/other"}
    assert hub_server.repos["ada/other"]["private"] is False


@pytest.mark.parametrize(
    ("token", "said", "sentence"),
    [
        ("", {}, "A token of the Hugging Face Hub is needed"),
        (None, {}, "The token must be text"),
        (TOKEN, {"name": "a b"}, "The repository's name must be"),
        (TOKEN, {"name": None}, "The repository's name must be text"),
        (TOKEN, {"description": ""}, "Select an adapter first"),
    ],
)
def test_a_push_that_cannot_be_is_one_sentence_and_sends_nothing(
    exports: Export, hub_server: Hub, token: object, said: dict, sentence: str
) -> None:
    assert sentence in pushed(exports, token, **said)["error"] and hub_server.requests == []


def test_a_refusal_of_the_hub_is_one_sentence(exports: Export, hub_server: Hub) -> None:
    hub_server.answers["create"] = (403, {}, b"{}")
    assert "does not let this token write" in pushed(exports)["error"]


@pytest.mark.parametrize("status", [200, 500])
def test_the_token_is_held_nowhere(
    model: Model, hub_server: Hub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    if status == 500:
        hub_server.answers["create"] = (500, {}, b"{}")
    demo = build_page(model)
    with serving(model, demo) as url:
        told, token = ask_server(url, "push", asked(name="found-again"), TOKEN)
        assert ("url" in json.loads(told)) == (status == 200) and token == ""
        config = httpx.get(f"{url}config", trust_env=False, timeout=300).text
    session = str(demo.state_holder.session_data["abc"].config_values)
    assert "found-again" in session  # what an event is given, Gradio holds
    assert TOKEN not in session + config + caplog.text + "".join(capfd.readouterr())


def test_the_push_is_no_api(model: Model) -> None:
    push = [fn for fn in build_page(model).get_config_file()["dependencies"] if fn["api_name"] in ("push", "make")]
    assert [fn["api_visibility"] for fn in push] == ["private", "private"]


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Space that has OAuth. Whoever asks for this machine's account fails."""

    def fail(*_: object) -> None:
        raise AssertionError("asked for this machine's account")

    for name, value in ({"SPACE_ID": "ada/space", "SYSTEM": "spaces"} | dict.fromkeys(OAUTH, "x")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    for name in ("get_token", "whoami"):
        monkeypatch.setattr(f"gradio.oauth.{name}", fail)


def drawn(model: Model) -> tuple[bool, bool]:
    """Whether a page has a button to sign in, and a field for a token."""
    text = json.dumps(build_page(model).get_config_file())
    return '"elem_id": "sign_in"' in text, "hub_token" in text


def test_in_a_space_nobody_else_s_token_is_asked_for(
    model: Model, exports: Export, hub_server: Hub, space: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradio.routes.attach_oauth", lambda app: None)  # needs gradio[oauth]
    assert drawn(model) == (True, False)
    assert "Sign in first" in pushed(exports, TOKEN)["error"] and hub_server.requests == []
    login = gr.OAuthToken(token=SIGNED_IN, scope="contribute-repos", expires_at=2**40)
    assert pushed(exports, TOKEN, login) == {"url": f"{hub_server.url}/ada/{SLUG}"}
    assert SIGNED_IN in str(hub_server.requests) and TOKEN not in str(hub_server.requests)


def test_in_a_space_a_visitor_signs_in_and_pushes_as_themselves(
    model: Model, hub_server: Hub, space: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("authlib")
    for name in OAUTH:
        monkeypatch.setattr(f"gradio.oauth.{name}", "x")
    monkeypatch.setattr("gradio.oauth.OAUTH_SCOPES", "openid profile contribute-repos")
    monkeypatch.setattr("gradio.oauth.OPENID_PROVIDER_URL", hub_server.url)
    with serving(model) as url, httpx.Client(base_url=url, trust_env=False, timeout=300) as client:

        def cookie(found: httpx.Response) -> str:  # which a browser sends over HTTPS alone
            return found.headers["set-cookie"].partition(";")[0]

        gone = client.get("login/huggingface")
        asked_for = dict(httpx.URL(gone.headers["location"]).params)
        assert asked_for["scope"] == "openid profile contribute-repos"
        back = {"code": "c", "state": asked_for["state"]}
        signed = cookie(client.get("login/callback", params=back, headers={"Cookie": cookie(gone)}))
        for sent, key in ((signed, "url"), ("", "error")):
            said, _ = ask_server(url, "push", asked(name=SLUG), "", cookie=sent)
            assert list(json.loads(said)) == [key]
    assert f"ada/{SLUG}" in hub_server.repos and f"Bearer {SIGNED_IN}" in str(hub_server.requests)


@pytest.mark.parametrize("lacks", [*OAUTH, "SYSTEM", "authlib"])
def test_a_space_without_oauth_has_no_push(
    model: Model, exports: Export, space: None, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    monkeypatch.delenv(lacks, raising=False)
    if lacks == "authlib":
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert drawn(model) == (False, False)
    assert "This Space has no sign-in" in pushed(exports, TOKEN)["error"]


def test_elsewhere_there_is_a_field_for_a_token(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HOSTS)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    assert drawn(model) == (False, True)
