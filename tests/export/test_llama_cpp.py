"""What is exported as GGUF, in llama.cpp itself: the log-probabilities of the likeliest tokens are ours.

`make test-export` runs this; it needs xllamacpp. Prompts are token ids, the cache is in float32, there is no flash
attention: what differs is the order of sums, and over quantised weights llama.cpp's quantised activations.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import hyperlora
from hyperlora import smollm2
from hyperlora.adapted import AdaptedModel
from hyperlora.config import HyperLoRAConfig, lora_scale, read_json
from hyperlora.export import export, export_base
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.pipe import Pipeline
from hyperlora.presets import PRESETS
from hyperlora.prompt import format_prompt
from tests.gguf_files import byte_level, save_folder
from tests.test_gguf import KINDS, random_model
from tests.test_llama_cpp import TEXTS, byte_level_cut, like_sentencepiece, targets, with_tokenizer

xllamacpp = pytest.importorskip("xllamacpp")
OPEN = Path(__file__).parents[2] / "training/smollm2/open.json"
TOLERANCE = 1e-2
SIZE = (
    0.2  # of the norm of a weight is that of its ΔW: a plain LoRA of a few hundred steps has 0.01, the mini model 0.4
)
TARGETS = {"q_proj": (576, 576), "v_proj": (576, 192)}  # of SmolLM2


class Step(NamedTuple):
    """A position of an answer: the token that was chosen, the twenty likeliest, and their log-probabilities."""

    token: int
    ids: list[int]
    logprobs: torch.Tensor


class LlamaCpp:
    """llama.cpp's server in this process, over a GGUF file and, of an adapter, another."""

    def __init__(self, model: Path, lora: Path | None = None):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(model), 512, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup, params.verbosity = False, -1
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self.server = xllamacpp.Server(params)

    def answer(self, prompt: list[int], tokens: int = 20, **options: object) -> list[Step]:
        options |= {"n_predict": tokens, "temperature": 0, "n_probs": 20, "ignore_eos": True, "cache_prompt": False}
        found = self.server.handle_completions({"prompt": prompt, **options})["choices"][0]["logprobs"]["content"]
        assert len(found) == tokens
        likely = [step["top_logprobs"] for step in found]
        return [
            Step(step["id"], [each["id"] for each in top], torch.tensor([each["logprob"] for each in top]))
            for step, top in zip(found, likely, strict=True)
        ]


def ours(adapted: AdaptedModel, adapter: Adapter | None, prompt: list[int], steps: list[Step]) -> torch.Tensor:
    """Our log-probabilities [steps, vocabulary] where llama.cpp's answer was written."""
    ids = torch.tensor([prompt + [step.token for step in steps]])
    slot = None if adapter is None else adapted.load(adapter)
    with torch.no_grad(), adapted.use([slot]):
        logits = adapted.model(ids).logits[0, len(prompt) - 1 : -1].float()
    if slot is not None:
        adapted.unload(slot)
    return logits.log_softmax(-1)


def assert_equal(adapted: AdaptedModel, adapter: Adapter | None, prompt: list[int], steps: list[Step]) -> float:
    """The twenty likeliest tokens of each position are ours, in that order, but for two as likely; the error."""
    worst = 0.0
    for step, logprobs in zip(steps, ours(adapted, adapter, prompt, steps), strict=True):
        error = (logprobs[step.ids] - step.logprobs).abs().max()
        likeliest = logprobs.topk(20)
        worst = max(worst, float(error), float((likeliest.values - step.logprobs).abs().max()))
        for mine, theirs in zip(likeliest.indices.tolist(), step.ids, strict=True):
            assert mine == theirs or abs(logprobs[mine] - logprobs[theirs]) < 2e-3
    assert worst < TOLERANCE
    return worst


# ---- mini: a real adapter ----


@pytest.fixture(scope="module")
def mini() -> Iterator[Pipeline]:
    pipe = hyperlora.pipeline("mini")
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def mini_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_base("mini", tmp_path_factory.mktemp("mini") / "base.gguf")


def test_the_base_alone(mini, mini_gguf):
    prompt = format_prompt(mini.tokenizer, "one two three")
    error = assert_equal(mini.adapted, None, prompt, LlamaCpp(mini_gguf).answer(prompt))
    print(f"The largest error of a log-probability is {error:.1e}.")


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0, 0.0])
def test_the_adapter_of_a_description(strength, mini, mini_gguf, tmp_path):
    """Its scale is rsLoRA's, and its strength may be negative or nothing."""
    adapter = mini.adapt("Put each word in square brackets.").scaled(strength)
    folder = export(mini, adapter, "gguf", tmp_path / "out")
    server = LlamaCpp(mini_gguf, folder / "adapter.gguf")
    prompt = format_prompt(mini.tokenizer, "one two three")
    steps = server.answer(prompt)
    print(f"The largest error of a log-probability is {assert_equal(mini.adapted, adapter, prompt, steps):.1e}.")
    if strength == 1:
        text = mini.tokenizer.decode([step.token for step in steps])
        assert text.startswith("[one] [two] [three]")


def test_the_merged_model(mini, tmp_path):
    adapter = mini.adapt("Write the plural of the word.").scaled(1.25)
    folder = export(mini, adapter, "merged-gguf", tmp_path / "out")
    prompt = format_prompt(mini.tokenizer, "window")
    steps = LlamaCpp(folder / "model.gguf").answer(prompt)
    print(f"The largest error of a log-probability is {assert_equal(mini.adapted, adapter, prompt, steps):.1e}.")


def test_a_chat_gets_the_same_prompt_there(mini, tmp_path):
    """From the chat template in the file, and by its tokenizer: the answer is the chat's here."""
    adapter = mini.adapt("Put each word in square brackets.")
    folder = export(mini, adapter, "merged-gguf", tmp_path / "out")
    server = LlamaCpp(folder / "model.gguf").server
    for message in ("one two three", "garden"):
        asked = {"messages": [{"role": "user", "content": message}], "temperature": 0, "max_tokens": 40}
        found = server.handle_chat_completions(asked)
        assert found["choices"][0]["message"]["content"].strip() == mini.chat(message, adapter=adapter)
        assert found["usage"]["prompt_tokens"] == len(format_prompt(mini.tokenizer, message))


# ---- each architecture and tokenizer: small random models ----


@pytest.mark.parametrize("form", ["gguf", "merged-gguf"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_architecture(kind, form, open_pipe, adapter_for, tmp_path):
    pipe = open_pipe(save_folder(tmp_path / "base", random_model(KINDS[kind])), targets(kind))
    adapter = adapter_for(pipe).scaled(-0.5)
    folder = export(pipe, adapter, form, tmp_path / "out")
    if form == "gguf":
        server = LlamaCpp(export_base(str(pipe.files), tmp_path / "base.gguf"), folder / "adapter.gguf")
    else:
        server = LlamaCpp(folder / "model.gguf")
    prompt = list(range(40, 60))  # longer than the windows of Gemma
    # A random answer need not be text, of which nothing is told: it is the letter b, whatever is likely.
    steps = server.answer(prompt, logit_bias=[[byte_level().token_to_id("b"), 1000]])
    print(f"The largest error of a log-probability is {assert_equal(pipe.adapted, adapter, prompt, steps):.1e}.")


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "sentencepiece"])
def test_each_tokenizer(name, tmp_path):
    """A text has the tokens there that it has here: what follows it is as likely."""
    backend = like_sentencepiece() if name == "sentencepiece" else byte_level_cut(name)
    tokenizer, folder = with_tokenizer(tmp_path / "base", backend, eos_token=backend.id_to_token(2))
    server = LlamaCpp(export_base(str(folder), tmp_path / "base.gguf")).server
    options = {"n_predict": 1, "temperature": 0, "n_probs": 20, "cache_prompt": False}
    for text in TEXTS[:4]:
        ids = tokenizer(text).input_ids
        by_text, by_ids = (server.handle_completions({"prompt": prompt, **options}) for prompt in (text, ids))
        assert by_text["usage"]["prompt_tokens"] == len(ids)
        assert by_text["choices"][0]["logprobs"] == by_ids["choices"][0]["logprobs"]


# ---- SmolLM2: a random adapter of the size of a trained one ----


@pytest.fixture(scope="module")
def smol(smollm2_base, smollm2_folder) -> Iterator[Pipeline]:
    model, tokenizer = smollm2_base
    config = HyperLoRAConfig("L", TARGETS, 30, d_emb=8, base_model=smollm2.NAME)
    pipe = Pipeline(
        HyperLoRA(config), AdaptedModel(model, list(TARGETS)), tokenizer, PRESETS["smollm2-135m"], files=smollm2_folder
    )
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def random_adapter(smol) -> Adapter:
    """Each ΔW is SIZE of its weight's norm."""
    random = torch.Generator().manual_seed(0)
    weights = {}
    for module, (d_in, d_out) in TARGETS.items():
        A, B = torch.randn(30, 8, d_in, generator=random), torch.randn(30, d_out, 8, generator=random)
        for layer, block in enumerate(smol.adapted.model.model.layers):
            norm = getattr(block.self_attn, module).weight.norm()
            B[layer] *= SIZE * norm / (B[layer] @ A[layer]).norm() / lora_scale(8.0, 8, True)
        weights[module] = (A, B)
    return Adapter(weights, alpha=8.0, use_rslora=True, base_model=smollm2.NAME, description="Answer at random.")


def prompts(pipe: Pipeline, count: int) -> list[list[int]]:
    messages = [kind["messages"][0] for kind in read_json(OPEN)][:count]
    return [format_prompt(pipe.tokenizer, message) for message in messages]


@pytest.mark.parametrize("form", ["gguf", "merged-gguf"])
def test_smollm2_in_float32(form, smol, random_adapter, tmp_path):
    folder = export(smol, random_adapter, form, tmp_path / "out")
    if form == "gguf":
        server = LlamaCpp(export_base("smollm2-135m", tmp_path / "base.gguf"), folder / "adapter.gguf")
    else:
        server = LlamaCpp(folder / "model.gguf")
    errors = [assert_equal(smol.adapted, random_adapter, prompt, server.answer(prompt)) for prompt in prompts(smol, 3)]
    print(f"The largest error of a log-probability is {max(errors):.1e}.")


def test_smollm2_over_the_q4_1_file(smol, random_adapter, tmp_path):
    """llama.cpp rounds what goes into a quantised linear too: with an adapter that shows no more than without."""
    file = smollm2._file()
    if file is None:
        pytest.skip("the package's file is not here, though the folder made from it is")
    lora = export(smol, random_adapter, "gguf", tmp_path / "out") / "adapter.gguf"
    differences, same = {}, {}
    for name, adapter, server in (
        ("base", None, LlamaCpp(file)),
        ("adapter", random_adapter, LlamaCpp(file, lora)),
    ):
        found, equal, moved = [], [], 0
        for prompt in prompts(smol, 10):
            steps = server.answer(prompt)
            for step, logprobs in zip(steps, ours(smol.adapted, adapter, prompt, steps), strict=True):
                found.append((logprobs[step.ids] - step.logprobs).abs().mean())
                equal.append(step.ids[0] == int(logprobs.argmax()))
            moved += int(
                (ours(smol.adapted, None, prompt, steps).argmax(-1) != torch.tensor([s.ids[0] for s in steps])).sum()
            )
        differences[name], same[name] = float(torch.stack(found).mean()), sum(equal)
        assert len(equal) == 200
    for name in differences:
        print(f"{name}: {differences[name]:.4f} a log-probability, {same[name]} of 200 first tokens are the same.")
    assert same["adapter"] >= 190
    assert differences["adapter"] <= differences["base"]
    assert moved > 50  # the adapter's answers are others
