"""What loading writes: nothing, where all goes well."""

import logging
from importlib import import_module

import pytest
from transformers.utils import logging as bars

from hyperlora.base import load_base
from hyperlora.embedder import SentenceEmbedder
from hyperlora.quiet import quietly

hub_bars = import_module("huggingface_hub.utils.tqdm")  # `utils.tqdm` is the class of that name


def test_loading_writes_nothing(tiny_base, capfd):
    load_base(tiny_base)
    SentenceEmbedder()
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward.")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("hub", [{}, {"_global": False}, {"_global": True, "huggingface_hub.snapshot_download": False}])
@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_what_their_owner_made_them(shown, hub, monkeypatch, capsys):
    """Inside, transformers draws none; those of downloads are as they were, and all are so afterwards."""
    monkeypatch.setattr(bars, "_tqdm_active", shown)
    monkeypatch.setattr(hub_bars, "progress_bar_states", dict(hub))
    with pytest.raises(KeyError), quietly():
        assert list(bars.tqdm(range(3), desc="Loading weights")) == [0, 1, 2]
        assert hub_bars.progress_bar_states == hub
        assert capsys.readouterr().err == ""
        raise KeyError
    assert hub_bars.progress_bar_states == hub
    assert list(bars.tqdm(range(3), desc="Loading weights")) == [0, 1, 2]
    assert ("Loading weights" in capsys.readouterr().err) == shown


def test_threads_may_leave_in_any_order():
    first, second = quietly(), quietly()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert bars._tqdm_hook is not None
    second.__exit__(None, None, None)
    assert bars._tqdm_hook is None


def test_quiet_inside_quiet_ends_with_the_outer():
    with quietly():
        with quietly():
            pass
        assert bars._tqdm_hook is not None
    assert bars._tqdm_hook is None
