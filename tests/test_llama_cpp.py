"""GGUF files that are written: an adapter's tensors are those that change the model, a merged model is read back."""

import json
import math
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma2Config, LlamaConfig, MistralConfig, OlmoConfig, Phi3Config, PreTrainedTokenizerFast

from hyperlora.base import load_base
from hyperlora.errors import UserError
from hyperlora.export import export, export_base
from hyperlora.gguf import read_config
from hyperlora.llama_cpp import WORDS
from hyperlora.prompt import encode_texts
from tests.gguf_files import SIZES, SPECIAL, TEXT, byte_level, save_folder, write_gguf
from tests.test_gguf import HEADS, KINDS, logits, random_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
TEXTS = ["The capital of France is Paris.", "wörld 🎈\n  two", " 42 4711", "it's   Mine\n\n", "<|im_start|>"]


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """Nothing of this is kept."""


def targets(kind: str) -> tuple[str, ...]:
    return FUSED if kind == "phi3" else ALL


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(path).tensors}


def adapted_logits(pipe, adapter) -> torch.Tensor:
    with torch.no_grad(), pipe.adapted.use([pipe.adapted.load(adapter)]):
        return logits(pipe.adapted.model)


def merge_by_hand(model, adapter) -> None:
    for name, parameter in model.named_parameters():
        module, kind = name.split(".")[-2:]
        if module in adapter.weights and kind == "weight":
            parameter.data += adapter.delta_w(module, int(name.split(".")[2]))


# ---- an adapter ----


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_what_the_merged_model_has_more_than_the_base(kind, open_pipe, adapter_for, tmp_path):
    """Both of which are written by what reads llama.cpp's conventions in the tests alone."""
    model = random_model(KINDS[kind])
    base = tensors(write_gguf(tmp_path / "base.gguf", model, kind))
    pipe = open_pipe(save_folder(tmp_path / "base", model), targets(kind))
    adapter = adapter_for(pipe, description="Sort the words.").scaled(-0.5)
    path = export(pipe, adapter, "gguf", tmp_path / "out") / "adapter.gguf"
    merge_by_hand(model, adapter)
    merged = tensors(write_gguf(tmp_path / "merged.gguf", model, kind))

    reader, factors = GGUFReader(path), tensors(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert (said["general.architecture"], said["general.type"], said["adapter.type"]) == (kind, "adapter", "lora")
    assert said["general.description"] == "Sort the words."
    assert said["adapter.lora.alpha"] == pytest.approx(0.5 * 16 / math.sqrt(4) * 4)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert {name.rpartition(".lora_")[0] for name in factors} == changed and len(changed) == 2 * len(targets(kind))
    for name in changed:
        A, B = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
        delta = said["adapter.lora.alpha"] / B.shape[1] * B @ A  # as llama.cpp computes it
        torch.testing.assert_close(base[name] + delta, merged[name], rtol=0, atol=1e-5)


def test_no_strength_is_zeros_since_llama_cpp_takes_no_alpha_for_a_scale_of_1(open_pipe, adapter_for, tmp_path):
    pipe = open_pipe(save_folder(tmp_path / "base", random_model(KINDS["llama"])))
    path = export(pipe, adapter_for(pipe).scaled(0), "gguf", tmp_path / "out") / "adapter.gguf"
    assert GGUFReader(path).fields["adapter.lora.alpha"].contents() > 0
    assert all(bool(values.any()) == name.endswith("lora_a") for name, values in tensors(path).items())


def test_an_architecture_that_has_no_name_there(open_pipe, adapter_for, tmp_path):
    pipe = open_pipe(save_folder(tmp_path / "base", random_model(OlmoConfig(**SIZES))))
    for form in ("gguf", "merged-gguf"):
        with pytest.raises(UserError, match="is of the type olmo, which is not written as GGUF here; llama, qwen2,"):
            export(pipe, adapter_for(pipe), form, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["base"]


# ---- a merged model ----


@pytest.mark.parametrize("from_file", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_read_back(kind, from_file, open_pipe, adapter_for, tmp_path):
    model = random_model(KINDS[kind])
    source = tmp_path / "base.gguf" if from_file else tmp_path / "base"
    (write_gguf(source, model, kind) if from_file else save_folder(source, model))
    pipe = open_pipe(source, targets(kind))
    adapter = adapter_for(pipe).scaled(0.75)
    file = export(pipe, adapter, "merged-gguf", tmp_path / "out") / "model.gguf"
    again, tokenizer = load_base(file)
    assert (logits(again) - logits(model)).abs().max() > 0.01
    torch.testing.assert_close(logits(again), adapted_logits(pipe, adapter), rtol=0, atol=1e-4)
    assert tokenizer.chat_template == pipe.tokenizer.chat_template
    assert encode_texts(tokenizer, TEXTS) == encode_texts(pipe.tokenizer, TEXTS)
    assert again.generation_config.eos_token_id == [2]
    merge_by_hand(model, adapter)
    expected = tensors(write_gguf(tmp_path / "expected.gguf", model, kind))
    found = tensors(file)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-5)


def test_a_quantised_file_is_merged_into_float(open_pipe, adapter_for, tmp_path):
    """With what it says of itself, but for the quantisation."""
    file = write_gguf(tmp_path / "base.gguf", random_model(KINDS["llama"]), quantization="Q8_0", general__name="Tiny")
    pipe = open_pipe(file)
    adapter = adapter_for(pipe)
    merged = export(pipe, adapter, "merged-gguf", tmp_path / "out", dtype="bfloat16") / "model.gguf"
    reader = GGUFReader(merged)
    assert reader.fields["general.name"].contents() == "Tiny"
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"BF16", "F32"}  # norms in the latter
    torch.testing.assert_close(logits(load_base(merged)[0]), adapted_logits(pipe, adapter), rtol=0, atol=0.2)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)  # fmt: skip
def test_scaled_positions(rope, tmp_path):
    config = LlamaConfig(**SIZES, head_dim=64, rope_parameters={"rope_theta": 500000.0} | rope)
    folder = save_folder(tmp_path / "base", random_model(config))
    again, _ = load_base(export_base(str(folder), tmp_path / "model.gguf"))
    assert again.config.rope_parameters == config.rope_parameters
    torch.testing.assert_close(logits(again), logits(load_base(folder)[0]), rtol=0, atol=1e-5)


def test_a_window_that_llama_cpp_has_not_ends_the_context(tmp_path):
    folder = save_folder(tmp_path / "base", random_model(MistralConfig(**SIZES, **HEADS, sliding_window=100)))
    assert read_config(export_base(str(folder), tmp_path / "a.gguf"))["max_position_embeddings"] == 100


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Gemma2Config(**SIZES, **HEADS, query_pre_attn_scalar=77), "query_pre_attn_scalar"),
        (LlamaConfig(**SIZES, **HEADS, hidden_act="gelu"), "hidden_act"),
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}), "yarn"),
        (
            Phi3Config(
                **SIZES,
                original_max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                    "original_max_position_embeddings": 64,
                },
            ),
            "longrope",
        ),
    ],
)
def test_what_a_header_cannot_say_is_refused(config, said, tmp_path):
    folder = save_folder(tmp_path / "base", random_model(config))
    with pytest.raises(UserError, match=said):
        export_base(str(folder), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


# ---- tokenizers ----


def with_tokenizer(path: Path, backend: Tokenizer, **special: str) -> tuple[PreTrainedTokenizerFast, Path]:
    """A model's folder with that tokenizer, whose vocabulary may be smaller than the model's."""
    save_folder(path, random_model(LlamaConfig(**SIZES | {"vocab_size": 600}, **HEADS)))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", **special)
    tokenizer.save_pretrained(path)
    return tokenizer, path


def trained(backend: Tokenizer, special: list[str], **options) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False, **options)
    backend.train_from_iterator(TEXT, trainer)
    return backend


def byte_level_cut(name: str) -> Tokenizer:
    """A BPE over bytes that cuts words as llama.cpp does under that name."""
    bytes_, digits = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=True)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = {
        "gpt-2": [bytes_],
        "smollm": [digits, bytes_],
        "llama-bpe": [pre_tokenizers.Split(Regex(WORDS % r"\p{N}{1,3}"), "isolated"), whole],
        "qwen2": [pre_tokenizers.Split(Regex(WORDS % r"\p{N}"), "isolated"), whole],
    }[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    return trained(backend, SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def like_sentencepiece() -> Tokenizer:
    """A BPE over characters, as Llama 2's, with a token for each byte that has no character."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trained(backend, ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))])
    return Tokenizer.from_str(backend.to_str().replace('"special":true', '"special":false'))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokenizers_by_how_they_cut_words(pre, tmp_path):
    backend = byte_level_cut(pre)
    tokenizer, folder = with_tokenizer(tmp_path / "base", backend, eos_token="<|im_end|>")
    file = export_base(str(folder), tmp_path / "model.gguf")
    said = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", pre)
    assert said["tokenizer.ggml.tokens"][: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert said["tokenizer.ggml.tokens"][len(tokenizer) :] == [f"[PAD{i}]" for i in range(len(tokenizer), 600)]
    assert set(said["tokenizer.ggml.token_type"][: len(tokenizer)]) == {1, 3}
    assert said["tokenizer.ggml.add_bos_token"] is False and said["tokenizer.ggml.eos_token_id"] == 2
    if pre in ("gpt-2", "smollm"):  # those that are read here as they are cut
        assert encode_texts(load_base(file)[1], TEXTS[:4]) == encode_texts(tokenizer, TEXTS[:4])


def test_a_tokenizer_in_the_way_of_sentencepiece(tmp_path):
    """Its scores put its merges in their order."""
    tokenizer, folder = with_tokenizer(tmp_path / "base", like_sentencepiece(), eos_token="</s>", unk_token="<unk>")
    file = export_base(str(folder), tmp_path / "model.gguf")
    said = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert said["tokenizer.ggml.model"] == "llama" and said["tokenizer.ggml.add_space_prefix"] is True
    scores = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.scores"], strict=True))
    merges = ["".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    assert len(merges) > 50 and [scores[merge] for merge in merges] == [-float(i) for i in range(len(merges))]
    read = load_base(file)[1]
    for text in ("The capital of France is Paris.", "wörld 🎈\n  two", "it's   Mine\n\n"):
        assert read(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids


def test_characters_are_tokens_of_one_byte(tiny_base, tmp_path):
    """Which is how the bundled model reads; what is no character of its vocabulary has no token there."""
    file = export_base(str(tiny_base), tmp_path / "model.gguf")
    fields = GGUFReader(file).fields
    assert fields["tokenizer.ggml.merges"].contents() == []
    assert "Ġ" in fields["tokenizer.ggml.tokens"].contents()
    tokenizer = load_base(file)[1]
    texts = ["one two, three.", "[INST] 4 + 2 [/INST]"]
    assert encode_texts(tokenizer, texts) == encode_texts(load_base(tiny_base)[1], texts)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a")), "of a kind that is not written"),
        (Tokenizer(models.Unigram([("a", 0.0), ("<|endoftext|>", 0.0)], 0)), "of a kind that is not written"),
        (byte_level(), None),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not(backend, said, tmp_path):
    if said is None:
        backend = Tokenizer.from_str(backend.to_str())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    _, folder = with_tokenizer(tmp_path / "base", backend)
    with pytest.raises(UserError, match=said or "cuts texts in a way that has no name in GGUF"):
        export_base(str(folder), tmp_path / "model.gguf")
