"""What loading writes: nothing, where all goes well."""

import logging

import pytest
from transformers.utils import logging as bars

from hyperlora.base import load_base
from hyperlora.embedder import SentenceEmbedder
from hyperlora.quiet import quietly


def test_loading_writes_nothing(tiny_base, capfd):
    load_base(tiny_base)
    SentenceEmbedder()
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward.")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_afterwards_what_they_were(shown):
    before = bars.is_progress_bar_enabled()
    (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
    try:
        with pytest.raises(KeyError), quietly():
            assert not bars.is_progress_bar_enabled()
            raise KeyError
        assert bars.is_progress_bar_enabled() == shown
    finally:
        (bars.enable_progress_bar if before else bars.disable_progress_bar)()
