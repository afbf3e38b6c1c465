"""GGUF files as base models: the same weights and tokens, from files that may say anything."""

import copy
import hashlib
import random
import struct
import threading
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hyperlora import conversion, gguf
from hyperlora.adapted import AdaptedModel
from hyperlora.base import end_tokens, load_base, origin
from hyperlora.chat import ChatEngine
from hyperlora.errors import UserError
from hyperlora.memory import BaseShape
from hyperlora.presets import base_path
from hyperlora.prompt import format_prompt
from tests.gguf_files import SIZES, TEMPLATE, byte_level, write_gguf

HEADS = {"head_dim": 16}
KINDS = {
    "llama": LlamaConfig(**SIZES, **HEADS),  # Mistral's name there too
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, **HEADS),
    "gemma2": Gemma2Config(**SIZES, **HEADS, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**SIZES, **HEADS, sliding_window=8, query_pre_attn_scalar=16),
    "phi3": Phi3Config(**SIZES),
}
QUANTIZATIONS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]  # that gguf-py writes in blocks of 32


def random_model(config) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
        for parameter in model.parameters():  # norms and biases too, which start as ones and zeros
            torch.nn.init.normal_(parameter, mean=0.05, std=0.15)
    return model


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return random_model(KINDS["llama"])


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """Nothing of this is kept."""


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40, 60)[None]).logits


@pytest.mark.parametrize("kind", KINDS)
def test_each_architecture_is_the_model_that_was_written(kind, tmp_path):
    """And its weights are those that transformers itself reads, which takes longer and knows less of the settings."""
    model = random_model(KINDS[kind])
    file = write_gguf(tmp_path / "model.gguf", model, kind)
    ours, _ = load_base(file)
    assert type(ours) is type(model)
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=1e-5)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, config=ours.config, dtype=torch.float32
    ).state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_each_quantisation_is_dequantised(quantization, llama, tmp_path):
    ours, _ = load_base(write_gguf(tmp_path / "model.gguf", llama, quantization=quantization))
    kind = GGMLQuantizationType[quantization]
    for name, weight in llama.state_dict().items():
        if weight.ndim > 1 and "q_proj" not in name and "k_proj" not in name:  # whose rows are in another order there
            weight = torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))
            assert torch.equal(ours.state_dict()[name], weight)
        tolerance = {"F32": 0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2}.get(quantization, 0.2)
        torch.testing.assert_close(ours.state_dict()[name], llama.state_dict()[name], rtol=0, atol=tolerance)


def test_the_shape_comes_from_the_header(llama, tmp_path):
    """And so does the memory, dequantised."""
    file = write_gguf(tmp_path / "model.gguf", llama, quantization="Q4_0")
    shape = BaseShape.from_path(file)
    assert shape.parameters == sum(parameter.numel() for parameter in llama.parameters())
    assert shape.bytes("float32") > 3 * file.stat().st_size - 200_000
    model, _ = load_base(file)
    assert BaseShape.from_path(base_path(str(file))) == shape
    assert shape.bytes("float32") == model.get_memory_footprint(return_buffers=False)
    assert origin(model) == (str(file), None)


def test_the_tokenizer_is_the_files(llama, tmp_path):
    _, tokenizer = load_base(write_gguf(tmp_path / "model.gguf", llama))
    for text in ("The capital of France is Paris.", "wörld 🎈\n  two", " 42"):
        assert tokenizer.encode(text, add_special_tokens=False) == byte_level().encode(text).ids
        assert tokenizer.decode(byte_level().encode(text).ids) == text
    assert tokenizer.chat_template == TEMPLATE
    prompt = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert format_prompt(tokenizer, "Hi.") == byte_level().encode(prompt).ids
    assert format_prompt(tokenizer, "Hi.").count(1) == 2


def test_a_table_may_have_rows_that_are_no_tokens(tmp_path):
    model = random_model(LlamaConfig(**SIZES | {"vocab_size": 352}, **HEADS))
    ours, tokenizer = load_base(write_gguf(tmp_path / "model.gguf", model))
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=1e-5)
    assert len(tokenizer) == SIZES["vocab_size"] < ours.config.vocab_size == 352


def test_digits_are_read_one_by_one_where_the_file_says_so(llama, tmp_path):
    _, tokenizer = load_base(write_gguf(tmp_path / "model.gguf", llama, tokenizer__ggml__pre="smollm"))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "Ġ", "Ġ", "1", "2"]


def test_all_end_tokens_are_read(llama, tmp_path):
    """transformers reads the first of the three."""
    ends = {"tokenizer__ggml__eot_token_id": 3, "tokenizer__ggml__eom_token_id": 4}
    model, tokenizer = load_base(write_gguf(tmp_path / "model.gguf", llama, **ends))
    assert end_tokens(model, tokenizer) == {2, 3, 4}
    assert sorted(model.generation_config.eos_token_id) == [2, 3, 4]
    engine = ChatEngine(AdaptedModel(model, ["q_proj"]), tokenizer)
    try:
        assert engine._eos == {2, 3, 4}
        assert isinstance("".join(engine.submit("Hi.", max_new_tokens=3)), str)
    finally:
        engine.close()


def test_positions_that_are_scaled_as_in_llama_3_1(tmp_path):
    """By factors for each wave, which the file has as a tensor."""
    given = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(**SIZES, head_dim=64, rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **given})
    model = random_model(config)
    slow, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    fast = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    model.register_buffer("rope_freqs", None)
    file = write_gguf(tmp_path / "model.gguf", model, more={"rope_freqs.weight": (fast / slow).numpy()})
    ours, _ = load_base(file)
    assert ours.config.rope_parameters == config.rope_parameters
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=1e-5)
    file = write_gguf(tmp_path / "other.gguf", model, more={"rope_freqs.weight": (fast / slow).numpy() ** 2})
    with pytest.raises(UserError, match=r"scales positions in a way \(rope_freqs\) that is not read"):
        load_base(file)


def test_the_same_file_gives_the_same_bytes_wherever_it_lies(llama, tmp_path, monkeypatch):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer_config.json").write_text('{"padding_side": "left"}')  # not this model's
        file = write_gguf(tmp_path / name / f"{name}.gguf", llama)
        monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / name / "cache"))
        folder = conversion.converted(file)
        found.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    assert found[0] == found[1] and "model.safetensors" in found[0]


def test_large_weights_are_in_several_files(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "SHARD", 100_000)
    monkeypatch.setattr(conversion, "LARGE", 1000)
    model, _ = load_base(write_gguf(tmp_path / "model.gguf", llama), dtype="bfloat16")
    folder = conversion.converted(tmp_path / "model.gguf")
    assert len(list(folder.glob("*.safetensors"))) > 1 and model.config.dtype == torch.bfloat16
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, llama.state_dict()[name].bfloat16())


def test_starts_at_the_same_time_convert_once(llama, tmp_path, own_cache, monkeypatch):
    file, made, convert = write_gguf(tmp_path / "model.gguf", llama), [], conversion._convert
    monkeypatch.setattr(conversion, "_convert", lambda *arguments: made.append(convert(*arguments)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(conversion.converted(file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(found)) == 1 and len(found) == 4


def test_a_conversion_that_ends_early_leaves_nothing(llama, tmp_path, own_cache, monkeypatch):
    file = write_gguf(tmp_path / "model.gguf", llama)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_atomic", fail)
        with pytest.raises(UserError, match=r"could not be written \(No space left on device\): free some space"):
            conversion.converted(file)
    assert [path.name for path in (own_cache / "gguf").iterdir() if path.suffix != ".lock"] == []
    assert (conversion.converted(file) / "config.json").is_file()


# ---- bad files ----


def refused(file: Path, match: str) -> None:
    """The loader says so, and nothing is kept."""
    with pytest.raises(UserError, match=match) as caught:
        load_base(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_what_is_no_gguf_file(tmp_path):
    for content in (b"", b"GG", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "model.gguf").write_bytes(content)
        refused(tmp_path / "model.gguf", "is no GGUF file")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    refused(tmp_path / "model.gguf", "is of version 1 of GGUF")


def test_a_file_that_is_cut_off(llama, tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf", llama).read_bytes()
    file = tmp_path / "model.gguf"
    for size in (4, 20, 100, 1000, len(whole) // 2, len(whole) - 1000):
        file.write_bytes(whole[:size])
        refused(file, "is cut off")


def test_an_architecture_that_is_not_read(llama, tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf", llama).read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole.replace(b"llama", b"mamba"))
    refused(tmp_path / "a.gguf", "is of the architecture 'mamba', which is not read")
    refused(write_gguf(tmp_path / "b.gguf", llama, llama__expert_count=8), "is a mixture of experts")
    refused(write_gguf(tmp_path / "c.gguf", llama, llama__rope__scaling__type="yarn"), r"in a way \(yarn\) that is not")
    refused(write_gguf(tmp_path / "d.gguf", llama, split__count=3), "is one of several parts: join them")


def test_a_quantisation_that_is_not_read(llama, tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf", llama, quantization="Q8_0").read_bytes()
    name = b"blk.0.attn_v.weight"
    place = whole.index(name) + len(name) + 4 + 16
    for number, shown in ((15, "Q8_K"), (999, "type 999")):
        (tmp_path / "model.gguf").write_bytes(whole[:place] + struct.pack("<I", number) + whole[place + 4 :])
        refused(tmp_path / "model.gguf", f"holds blk.0.attn_v.weight quantised as {shown}, which is not read")


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('Never.') }}", "{{ messages[7]['content'] }}"])
def test_a_chat_template_that_fails(template, llama, tmp_path):
    refused(write_gguf(tmp_path / "model.gguf", llama, template=template), "The chat template in .* fails")


def test_a_file_without_a_template_is_a_base_for_who_brings_one(llama, tmp_path):
    assert load_base(write_gguf(tmp_path / "model.gguf", llama, template=None))[1].chat_template is None


def test_a_file_that_lacks_what_a_model_needs(llama, tmp_path):
    refused(write_gguf(tmp_path / "a.gguf", llama, skip=("tokenizer",)), "has no tokenizer, or none that fits")
    refused(write_gguf(tmp_path / "b.gguf", llama, skip=("llama.block_count",)), "no number .* as llama.block_count")
    skipped = write_gguf(tmp_path / "c.gguf", llama, skip=("blk.1.ffn_up.weight",))
    refused(skipped, "is damaged .it holds fewer weights than its header describes")
    refused(write_gguf(tmp_path / "d.gguf", llama, skip=("blk.1.attn_norm.weight",)), "weights than|is missing")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llama.embedding_length", 2**30),
        ("llama.block_count", 2**31 - 1),
        ("llama.feed_forward_length", 2**31 - 1),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count_kv", 2**30),
        ("llama.attention.key_length", 2**30),
    ],
)
def test_a_header_that_claims_any_size_gets_no_memory(name, value, llama, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", llama, **{name.replace(".", "__"): value})
    refused(file, "is damaged|no number that can be read|does not fit its own header")


def test_counts_that_no_file_has(tmp_path):
    file = tmp_path / "model.gguf"
    for tensors, keys in ((2**63, 1), (0, 2**63), (2**20, 0)):
        file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + bytes(100))
        refused(file, "is damaged .it claims")
    key = struct.pack("<Q", 1) + b"a"
    for kind, count in ((8, 2**60), (4, 2**60), (10, 2**32)):  # an array of texts, of numbers
        start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key
        file.write_bytes(start + struct.pack("<IIQ", 9, kind, count) + bytes(1000))
        refused(file, "is cut off or damaged")
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62) + b"a")
    refused(file, "is cut off or damaged")


def test_any_bytes_are_a_model_or_one_sentence(llama, tmp_path):
    """Hundreds of headers with a byte or two changed."""
    whole = bytearray(write_gguf(tmp_path / "whole.gguf", llama, quantization="Q4_0").read_bytes())
    header = whole.index(b"output_norm.weight")
    draw, file, failed = random.Random(0), tmp_path / "model.gguf", 0
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 2))):
            changed[draw.choice((draw.randrange(header), draw.randrange(800)))] = draw.choice((0, 1, 127, 255))
        file.write_bytes(changed)
        try:
            gguf.read_config(file)
        except UserError as error:
            failed += "\n" not in str(error)
    assert failed > 30


# ---- the real one ----


def test_smollm2_answers(smollm2_base):
    model, tokenizer = smollm2_base
    ids = torch.tensor([format_prompt(tokenizer, "What is the capital of France?")])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(answer[0, ids.shape[1] :]) == "The capital of France is Paris.<|im_end|>"
    assert origin(model) == ("HuggingFaceTB/SmolLM2-135M-Instruct", None)
