"""What is in the cache, what a download brings, and its progress, against a Hub in a folder."""

import json

import pytest
from huggingface_hub import errors

from hyperlora import hub
from hyperlora.errors import UserError
from hyperlora.hub import Cancelled, Repo

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
BASE = Repo("owner/base", ("*.json", "model*.safetensors"))


@pytest.fixture
def base(fake_hub):
    """A base model of two shards on the Hub, 14 GB in all, with 30 GB of what nobody needs."""
    fake_hub.add("owner/base", {"config.json": 1000, "pytorch_model.bin": 15e9, "consolidated.safetensors": 15e9})
    fake_hub.add("owner/base", {SHARDS[0]: 9e9, SHARDS[1]: 5e9, "model.safetensors.index.json": INDEX})
    return fake_hub


def test_a_download_brings_what_is_needed_and_not_here(base):
    size, commit = hub.missing(BASE)
    assert 14e9 < size < 14.1e9 and commit == base.commit("owner/base")
    base.fetch("owner/base", SHARDS[0])
    assert 5e9 < hub.missing(BASE)[0] < 5.1e9


def test_a_part_of_the_weights_is_no_copy(base):
    assert hub.cached(BASE) is None
    for name in ("config.json", "model.safetensors.index.json", SHARDS[0]):
        base.fetch("owner/base", name)
        assert hub.cached(BASE) is None
    base.fetch("owner/base", SHARDS[1])
    assert hub.cached(BASE).name == base.commit("owner/base")
    assert hub.missing(BASE)[0] == 0


def test_progress_is_over_all_repositories_and_never_falls(base):
    base.add("owner/small", {"model.safetensors": 2e9})
    seen = []
    hub.download([BASE, Repo("owner/small", ("*.safetensors",))], seen.append)
    assert seen == sorted(seen) and seen[0] < 9e9
    assert seen[-1] == pytest.approx(16e9, rel=1e-3)
    assert hub.cached(BASE) and hub.cached(Repo("owner/small", ("*.safetensors",)))


def test_a_download_can_be_cancelled(base):
    def report(done):
        if done > 1e9:
            raise Cancelled

    with pytest.raises(Cancelled):
        hub.download([BASE], report)
    assert hub.cached(BASE) is None


def test_what_cannot_be_had_is_one_sentence(base, monkeypatch):
    base.add("owner/gated", {"model.safetensors": 1e9}, gated=True)
    base.add("owner/pickle", {"pytorch_model.bin": 1e9})
    for name, sentence in {
        "owner/gated": "owner/gated is gated: accept its terms",
        "owner/nothing": "nor a repository on the Hub",
        "owner/pickle": "owner/pickle has no model.safetensors on the Hub",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            hub.missing(Repo(name, ("*.safetensors",)))
        assert not isinstance(caught.value, hub.Unreachable)
    base.down = errors.HTTPError("timed out")
    with pytest.raises(hub.Unreachable, match="check the network"):
        hub.missing(BASE)
    with pytest.raises(UserError, match="check the network"):
        hub.download([BASE], lambda done: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(hub.Unreachable, match="HF_HUB_OFFLINE forbids a download"):
        hub.missing(BASE)


def test_the_disk_has_to_have_room(base, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    free = hub.check_disk(0)
    assert free > 0
    with pytest.raises(UserError, match=r"A download of .* does not fit: .* set HF_HOME to a folder on another disk"):
        hub.check_disk(free)


def test_sizes_for_people():
    assert [hub.gigabytes(size) for size in (412.3e9, 14.46e9, 235e6)] == ["412 GB", "14.5 GB", "235 MB"]
