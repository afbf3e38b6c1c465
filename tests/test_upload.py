"""Adapters in zips: as PEFT, people and their tools make them, and as somebody could who means harm."""

import pickle
import shutil
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import pytest
import torch

import hyperlora
from hyperlora import upload
from hyperlora.errors import UserError
from hyperlora.export import export_zip
from hyperlora.lora import Adapter
from hyperlora.upload import unpack

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TRAP = pickle.dumps(Path)  # any pickle


@pytest.fixture(scope="module")
def pipe(tiny_base, tiny_hyperlora) -> Iterator[hyperlora.Pipeline]:
    pipe = hyperlora.pipeline(None, base=tiny_base, hyperlora=tiny_hyperlora)
    yield pipe
    pipe.close()


@pytest.fixture
def files(make_adapter, tmp_path) -> dict[str, bytes]:
    """The two files of an adapter of the tiny base, by name."""
    make_adapter(1).save_pretrained(tmp_path / "saved")
    return {name: (tmp_path / "saved" / name).read_bytes() for name in (CONFIG, WEIGHTS)}


@pytest.fixture
def make_zip(tmp_path) -> Callable[..., Path]:
    """make_zip({name: bytes}, compression): a zip of these, written by `zipfile`; a name may be a `ZipInfo`."""

    def make(members: dict | list[tuple], compression: int = zipfile.ZIP_STORED) -> Path:
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w", compression) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that is there already
            for name, content in members.items() if isinstance(members, dict) else members:
                file.writestr(name, content)
        return path

    return make


def patch(path: Path, member: int, offset: int, value: bytes) -> Path:
    """Overwrite bytes of the nth entry in the zip's central directory: flags 8, sizes 20 and 24, name 46."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(member + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)
    return path


def refused(path: Path, folder: Path, sentence: str) -> None:
    """It is refused in that sentence, and nothing is written anywhere but to the two files."""
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=sentence):
        unpack(path, folder / "inside")
    assert [found.name for found in folder.iterdir()] == ["inside"]
    assert {found.name for found in (folder / "inside").iterdir()} <= {CONFIG, WEIGHTS}


# ---- what is taken ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_peft_saves_and_somebody_zips(pipe, tiny_model, tmp_path, dtype):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(tiny_model, config).to(dtype)
    tuned.save_pretrained(tmp_path / "tuned")
    names = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert names > {CONFIG, WEIGHTS}  # a README too
    adapters = [
        pipe.load_adapter(shutil.make_archive(str(tmp_path / name), "zip", tmp_path, base))
        for name, base in (("folder", "tuned"), ("all", None))
    ]
    adapters.append(pipe.load_adapter(shutil.make_archive(str(tmp_path / "flat"), "zip", tmp_path / "tuned")))
    lora = tuned.base_model.model.model.layers[1].self_attn.v_proj.float()
    for adapter in adapters:
        torch.testing.assert_close(adapter.delta_w("v_proj", 1), lora.get_delta_weight("default"))
    assert {adapter.digest() for adapter in adapters} == {Adapter.from_pretrained(tmp_path / "tuned").digest()}


def test_what_we_export(pipe, tmp_path):
    adapter = pipe.adapt("Reverse the words.").scaled(-2)
    again = pipe.load_adapter(export_zip(adapter, tmp_path, pipe.tokenizer.chat_template))
    assert again.description == "Reverse the words." and again.strength == 1
    torch.testing.assert_close(again.delta_w("q_proj", 1), adapter.delta_w("q_proj", 1))
    assert again.digest() == pipe.load_adapter(export_zip(adapter, tmp_path / "other")).digest() != adapter.digest()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inside", ["", "adapter/", "a b/\u00fc/checkpoint-10/", "adapter\\"])
def test_folders_and_what_tools_add(pipe, files, make_zip, make_adapter, compression, inside):
    members = {inside + name: content for name, content in files.items()}
    members |= {f"__MACOSX/{inside}._{CONFIG}": b"\x00\x05\x16\x07", f"{inside}README.md": b"# It is mine", "x/": b""}
    path = make_zip(members, compression)
    assert pipe.load_adapter(path).digest() == make_adapter(1).digest()


# ---- what is refused ----


@pytest.mark.parametrize(
    "name",
    ["../up", "a/../../up", "..\\up", "/etc/passwd", "\\up", "C:\\up", "c:up", f"../{CONFIG}", "a/..", f"/{WEIGHTS}"],
)
def test_a_path_that_climbs(files, make_zip, tmp_path, name):
    refused(make_zip({name: b"x"} | files), tmp_path / "to", "a path that leads out of it")


def test_a_name_with_a_nul(files, make_zip, tmp_path):
    path = make_zip({"adapter_config.json_../up": b"x"} | files)
    refused(patch(path, 0, 46 + len(CONFIG), b"\0"), tmp_path / "to", "a path that leads out of it")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "README.md"])
def test_a_link(files, make_zip, tmp_path, name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    members = [(info, "/etc/passwd"), *((other, content) for other, content in files.items() if other != name)]
    refused(make_zip(members), tmp_path / "to", f"holds '{name}', a link to another file")


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("flag", [0x1, 0x41])
def test_an_encrypted_member(files, make_zip, tmp_path, member, flag):
    path = patch(make_zip(files), member, 8, struct.pack("<H", flag))
    refused(path, tmp_path / "to", "is encrypted: zip it without a password")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter/optimizer.pt", "x.PKL", "training.bin", "a\\b.pth"])
def test_a_pickle(files, make_zip, tmp_path, name):
    refused(
        make_zip(files | {name: TRAP}), tmp_path / "to", "could run code when read: save the adapter as safetensors"
    )
    refused(make_zip({CONFIG: files[CONFIG], name: TRAP}), tmp_path / "again", "could run code when read")


def test_a_pickle_under_another_name(pipe, files, make_zip):
    for content in (TRAP, b"\x80\x04" + b"x" * 100):
        with pytest.raises(UserError, match=f"^{WEIGHTS} is damaged: it is not a whole safetensors file"):
            pipe.load_adapter(make_zip(files | {WEIGHTS: content}))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "README.md"])
def test_a_name_that_is_there_twice(files, make_zip, tmp_path, name):
    members = [*({"README.md": b""} | files).items(), (name, b"another")]
    refused(make_zip(members), tmp_path / "to", f"holds '{name}' twice")


def test_no_adapter_or_several(files, make_zip, tmp_path):
    refused(make_zip({}), tmp_path / "empty", f"holds no {CONFIG}: zip {CONFIG} and {WEIGHTS}")
    refused(make_zip({"README.md": b"x"}), tmp_path / "other", f"holds no {CONFIG}")
    refused(make_zip({WEIGHTS: files[WEIGHTS]}), tmp_path / "config", f"holds no {CONFIG}")
    refused(make_zip({CONFIG: files[CONFIG]}), tmp_path / "weights", f"holds no '{WEIGHTS}'")
    apart = {f"a/{CONFIG}": files[CONFIG], f"b/{WEIGHTS}": files[WEIGHTS]}
    refused(make_zip(apart), tmp_path / "apart", f"holds no 'a/{WEIGHTS}'")
    refused(make_zip(files | {f"b/{CONFIG}": files[CONFIG]}), tmp_path / "two", f"holds 2 {CONFIG}")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_rare_compression(files, make_zip, tmp_path, compression):
    refused(make_zip(files, compression), tmp_path / "to", "compressed in a rare way: zip it with deflate")


# ---- sizes ----


def test_a_zip_that_is_too_large(files, make_zip, tmp_path, monkeypatch):
    path = make_zip(files)
    with open(path, "ab") as file:  # sparse: takes no space on the disk
        file.truncate(upload.MAX_ZIP + 1)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it was parsed"))
    refused(path, tmp_path / "to", "larger than 256 MiB, which is the limit")


def test_a_bomb(files, make_zip, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "MAX_ZIP", 2**20)
    path = make_zip(files | {WEIGHTS: bytes(2**20 + 1)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    refused(path, tmp_path / "to", f"{WEIGHTS} has more than 1 MiB, which is the limit")
    refused(make_zip(files | {CONFIG: bytes(2**20 + 1)}, zipfile.ZIP_DEFLATED), tmp_path / "config", f"{CONFIG} has mo")
    unpack(make_zip(files | {"README.md": bytes(2**20 + 1)}, zipfile.ZIP_DEFLATED), tmp_path)  # which nobody reads


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_holds_more_than_it_says(files, make_zip, tmp_path, compression):
    content = {CONFIG: files[CONFIG], WEIGHTS: bytes(50_000_000)}
    path = patch(make_zip(content, compression), 1, 24, struct.pack("<L", 1000))
    refused(path, tmp_path / "to", "no zip, or a damaged one")
    assert (tmp_path / "to" / "inside" / WEIGHTS).stat().st_size <= 1000


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (16, 0),  # its checksum
        (24, 10**8),  # its size
        (24, 2**32 - 1),  # that its size is in a zip64 extra, which is not there
        (42, 2**32 - 2),  # where it begins
        (42, 1),
    ],
)
def test_a_member_that_lies(files, make_zip, tmp_path, offset, value):
    path = patch(make_zip(files, zipfile.ZIP_DEFLATED), 1, offset, struct.pack("<L", value))
    refused(path, tmp_path / "to", "no zip, or a damaged one|has more than 256 MiB")


def test_a_zip_of_very_many_members(files, make_zip, tmp_path):
    path = make_zip({f"{i}": b"" for i in range(10_000)} | files)
    refused(path, tmp_path / "to", "holds too many files")
    data = bytearray(path.read_bytes())
    data[-10:-6] = struct.pack("<L", 2**32 - 2)  # a directory of 4 GB
    path.write_bytes(data)
    refused(path, tmp_path / "size", "holds too many files|no zip, or a damaged one")


def test_a_list_of_tensors_without_end(files, make_zip, tmp_path):
    content = struct.pack("<Q", 5 * 2**20) + b"{" + b" " * (5 * 2**20 - 2) + b"}"
    refused(make_zip(files | {WEIGHTS: content}, zipfile.ZIP_DEFLATED), tmp_path / "to", f"{WEIGHTS} is damaged")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x05\x06", b"PK\x05\x06" + bytes(18), b"no zip at all" * 1000, TRAP]
)
def test_no_zip(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", tmp_path / "to", f"no zip, or a damaged one: zip {CONFIG}|holds no {CONFIG}")


def test_a_zip_that_is_cut_or_damaged_anywhere(files, make_zip, tmp_path):
    whole = make_zip(files, zipfile.ZIP_DEFLATED).read_bytes()
    (tmp_path / "to").mkdir()
    for i in range(0, len(whole), 997):
        for data in (whole[:i], whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :]):
            (tmp_path / "a.zip").write_bytes(data)
            with pytest.raises(UserError):
                unpack(tmp_path / "a.zip", tmp_path / "to")


# ---- what does not fit the base ----


def test_what_is_in_it_is_checked_as_in_a_folder(pipe, files, make_zip, make_adapter, tmp_path):
    adapter = make_adapter(1)
    adapter.weights["q_proj"] = (torch.zeros(2, 8, 48), torch.zeros(2, 64, 8))
    with pytest.raises(UserError, match="q_proj is 48 -> 64 and the base model's 64 -> 64"):
        pipe.load_adapter(export_zip(adapter, tmp_path))
    with pytest.raises(UserError, match=f"^{CONFIG} is damaged"):
        pipe.load_adapter(make_zip(files | {CONFIG: b"[" * 100_000}))
    with pytest.raises(UserError, match="does not say peft_type LORA"):
        pipe.load_adapter(make_zip(files | {CONFIG: b"{}"}))
    with pytest.raises(UserError, match="made for the base model some/other"):
        pipe.load_adapter(export_zip(make_adapter(1, base_model="some/other"), tmp_path))
