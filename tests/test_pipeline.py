"""The public names of the README, used as the README uses them."""

import gc
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from peft import PeftModel
from transformers import MistralConfig, MistralForCausalLM

import hyperlora
from hyperlora import Adapter, HyperLoRA, UserError
from hyperlora.interop.order import with_order
from hyperlora.interop.text_to_lora import import_checkpoint
from hyperlora.presets import PRESETS, Preset
from hyperlora.prompt import format_prompt

TEXTS = ["Reverse the order of the words.", "Add the two numbers."]


@pytest.fixture(scope="module")
def pipe(tiny_base, tiny_hyperlora):
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=tiny_hyperlora)
    pipe.engine._eos = set()  # random weights would end some answers at once
    yield pipe
    pipe.close()


@pytest.fixture
def single_turn(tiny_base, tiny_hyperlora, monkeypatch):
    """A pipeline of a preset that answers each message on its own, as `mini` does."""
    preset = Preset("tiny", "For tests.", str(tiny_base), str(tiny_hyperlora), multi_turn=False, max_new_tokens=7)
    monkeypatch.setitem(PRESETS, "tiny", preset)
    pipe = hyperlora.pipeline("tiny")
    pipe.engine._eos = set()
    yield pipe
    pipe.close()


def test_the_bundled_model_answers_as_the_readme_says():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = re.findall(r"^\| (.+) \| `(.+)` \| `(.+)` \|$", readme, re.MULTILINE)
    mini = hyperlora.pipeline("mini")
    adapters = [mini.adapt(description) for description, *_ in rows]
    answers = mini.chat_batch([message for _, message, _ in rows], adapters=adapters)
    mini.close()
    assert len(rows) == 5 and answers == [answer for *_, answer in rows]


def test_the_bundled_hypernetwork_can_be_loaded_alone():
    folder = Path(__file__).parents[1] / "assets" / "mini" / "hyperlora-M"
    [adapter] = HyperLoRA.from_pretrained(folder).generate(["Reverse the words."])
    assert adapter.rank == 8


def test_a_checkpoint_pins_its_encoder(tiny_base, tiny_hyperlora, minilm, monkeypatch, tmp_path):
    pinned = HyperLoRA.from_pretrained(tiny_hyperlora)
    pinned.config.embedder_revision = "abc"
    pinned.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr("hyperlora.pipe.load_embedder", lambda name, revision, *_: asked.append(revision) or minilm)
    for folder in (tmp_path, tiny_hyperlora):
        hyperlora.pipeline(None, base=tiny_base, hyperlora=folder).close()
    assert asked == ["abc", None]


def test_importing_hyperlora_is_light():
    code = (
        "import sys, hyperlora; heavy = {'torch', 'transformers', 'gradio', 'sentence_transformers', 'peft'};"
        "print(sorted(heavy & set(sys.modules)), dir(hyperlora).count('pipeline'))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[] 1"


def test_pipeline_is_a_function_whatever_was_imported_before():
    code = (
        "import hyperlora, hyperlora.pipe; from hyperlora.pipe import Pipeline; from hyperlora import pipeline;"
        "print(callable(hyperlora.pipeline), hyperlora.pipeline is pipeline is hyperlora.pipe.pipeline)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "True True"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hyperlora.nonsense


def test_describe_adapt_chat(pipe):
    adapter = pipe.adapt(TEXTS[0])
    assert isinstance(adapter, Adapter) and adapter.description == TEXTS[0]
    answer = pipe.chat("one two three", adapter=adapter, max_new_tokens=8)
    stream = pipe.chat("one two three", adapter=adapter, stream=True, max_new_tokens=8)
    pieces = list(stream)
    assert "".join(pieces) == stream.text == answer and len(pieces) > 1
    assert answer != pipe.chat("one two three", max_new_tokens=8)  # the base alone


def test_a_list_of_texts_gives_a_list(pipe):
    adapters = pipe.adapt(TEXTS)
    assert [adapter.description for adapter in adapters] == TEXTS
    assert len(pipe.adapt(TEXTS[:1])) == 1


def test_a_batch_gives_each_row_its_own_adapters_answer(pipe, answers):
    first, second = pipe.adapt(TEXTS)
    messages, adapters = ["one two", "5 9", "x"], [first, second, None]
    streams = pipe.engine.submit_many(messages, adapters, max_new_tokens=8)
    expected = [answers(*of, 8) for of in zip(streams, messages, adapters, strict=True)]
    assert pipe.chat_batch(messages, adapters=adapters, max_new_tokens=8) == expected  # the same batch
    assert pipe.chat_batch(["x"], max_new_tokens=8) == [pipe.chat("x", max_new_tokens=8)]  # no adapters: the base
    with pytest.raises(UserError, match="3 chats and 2 adapters"):
        pipe.chat_batch(messages, adapters=adapters[:2])


def test_the_adapted_answer_is_what_peft_gives_from_the_saved_folder(
    pipe, tiny_base, tmp_path, assert_greedy, read_ids
):
    adapter = pipe.adapt(TEXTS[0])
    adapter.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(tiny_base), tmp_path).eval()
    ids = read_ids(pipe.chat("one two", adapter=adapter, stream=True, max_new_tokens=10))
    assert len(ids) == 10
    assert_greedy(model, format_prompt(pipe.tokenizer, "one two"), ids)


def test_an_adapter_goes_to_a_folder_and_comes_back(pipe, tmp_path):
    adapter = pipe.adapt(TEXTS[0])
    adapter.save_pretrained(tmp_path)
    back = pipe.load_adapter(tmp_path)
    assert back.description == TEXTS[0]
    assert pipe.chat("a b", adapter=back, max_new_tokens=8) == pipe.chat("a b", adapter=adapter, max_new_tokens=8)


def test_several_turns_are_all_sent(pipe):
    assert pipe.multi_turn
    chat = [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "x y"},
    ]
    assert pipe.chat(chat, max_new_tokens=8) != pipe.chat("x y", max_new_tokens=8)


def test_a_single_turn_preset_sends_the_last_message_alone(single_turn):
    chat = [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "x y"},
    ]
    assert single_turn.preset.name == "tiny" and not single_turn.multi_turn
    alone = single_turn.chat("x y")
    assert single_turn.chat(chat) == alone == single_turn.chat(" x y\n")
    assert alone == single_turn.chat("x y", max_new_tokens=7)  # the preset's length
    begun = {"role": "assistant", "content": "b"}
    assert single_turn.chat([*chat, begun]) == single_turn.chat([chat[-1], begun])


def test_a_long_chat_is_shortened_to_leave_room_for_the_answer(pipe):
    """Of 256 tokens, a character each: the oldest leave, and no more of them than that takes."""
    adapter = pipe.adapt(TEXTS[0])
    turns = [{"role": role, "content": f"{i} {'x' * 20}"} for i in range(9) for role in ("user", "assistant")]
    chat = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "last"}]
    for describe, room in ((False, 0), (False, 100), (True, 50)):
        shorter = pipe.shorten(chat, adapter, describe, room=room)
        left = len(chat) - len(shorter)
        assert left > 0 and left % 2 == 0 and shorter == [chat[0], *chat[1 + left :]]
        lengths = [
            len(format_prompt(pipe.tokenizer, pipe.prepare([chat[0], *chat[1 + gone :]], adapter, describe)))
            for gone in (left, left - 2)
        ]
        assert lengths[0] <= 256 - room < lengths[1]
    assert pipe.shorten(chat, room=1000) == [chat[0], chat[-1]]  # what is asked stays
    assert pipe.shorten(chat[:3] + chat[-1:]) == chat[:3] + chat[-1:]
    assert pipe.shorten("one") == [{"role": "user", "content": "one"}]


def test_any_number_of_chats_is_answered_behind_all_others(pipe):
    """As each is alone; what cannot be answered says so, and takes nothing from the others."""
    adapter = pipe.adapt(TEXTS[0])
    chats = [f"{'x' * (i % 7)} {i}" for i in range(40)]
    chats[5], chats[30] = "", "x" * 500
    read = []
    answers = dict(pipe.chat_all((read.append(i) or chat for i, chat in enumerate(chats)), adapter, max_new_tokens=6))
    assert sorted(answers) == list(range(40)) == read
    assert "empty" in str(answers.pop(5)) and "shorten it" in str(answers.pop(30))
    assert answers == {i: pipe.chat(chats[i], adapter, max_new_tokens=6) for i in answers}
    *wrong, (last, answer) = pipe.chat_all([""] * 40 + ["a"], max_new_tokens=2)  # more than the batch has rows
    assert len(wrong) == last == 40 and answer == pipe.chat("a", max_new_tokens=2)


def test_leaving_what_is_answered_behind_others_ends_it(pipe):
    read = []
    answers = pipe.chat_all((read.append(i) or "a" for i in range(10**6)), max_new_tokens=5)
    next(answers)
    assert len(read) == pipe.engine.max_batch
    answers.close()
    assert pipe.chat("a", max_new_tokens=5) and not pipe.engine._batch.rows
    ended = SimpleQueue()
    answers = pipe.chat_all((read.append(i) or "a" for i in range(10**6)), ended=ended, max_new_tokens=200)
    reader = threading.Thread(target=lambda: list(answers))
    reader.start()
    ended.put(None)  # from another thread than the one that reads
    reader.join(60)
    assert not reader.is_alive() and pipe.chat("a", max_new_tokens=5) and not pipe.engine._batch.rows


def test_descriptions_read_by_the_base_itself(tiny_base, tiny_hyperlora, tmp_path):
    folder = shutil.copytree(tiny_hyperlora, tmp_path / "last_token")
    small = HyperLoRA.from_pretrained(folder).config
    small.d_emb, small.embedder = 64, "last_token"
    torch.manual_seed(0)
    HyperLoRA(small).save_pretrained(folder)
    with pytest.raises(UserError, match=r"load it with hyperlora\.pipeline"):
        HyperLoRA.from_pretrained(folder).generate(TEXTS[0])
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=folder)
    stream = pipe.chat("a", adapter=pipe.adapt(TEXTS[0]), stream=True, max_new_tokens=100)
    during, after = pipe.adapt(TEXTS[1]), ("".join(stream), pipe.adapt(TEXTS[1]))[1]
    assert torch.equal(during.weights["q_proj"][0], after.weights["q_proj"][0])  # no adapter leaks into the embedding
    pipe.close()


# ---- what stands before the message ----


@pytest.fixture
def prompts(pipe, monkeypatch):
    """The prompts that the model has been sent, as text; each answer is one token long."""
    sent, submit = [], pipe.engine.submit_many

    def record(chats, adapters, **options):
        sent.extend(pipe.tokenizer.decode(format_prompt(pipe.tokenizer, chat)) for chat in chats)
        return submit(chats, adapters, **options | {"max_new_tokens": 1})

    monkeypatch.setattr(pipe.engine, "submit_many", record)
    return sent


def test_the_description_goes_into_the_prompt_where_that_is_asked_for(pipe, prompts):
    first, second = pipe.adapt(TEXTS)
    plain, described = "<s>[INST] x [/INST]", "<s>[INST] Reverse the order of the words.<unk>x [/INST]"  # no newline
    for options in ({}, {"describe": False}, {"describe": True}):
        pipe.chat(" x", adapter=first, **options)
    pipe.chat("x", describe=True)  # the base alone
    assert prompts == [plain, plain, described, plain]
    del prompts[:]
    pipe.chat_batch(["x", "x", "x"], [first, None, second], describe=True)
    assert prompts == [described, plain, "<s>[INST] Add the two numbers.<unk>x [/INST]"]


def test_the_description_stands_before_the_first_message(pipe, prompts):
    chat = [
        {"role": "system", "content": "Be kind."},  # the template refuses it
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    before = json.dumps(chat)
    pipe.chat(chat, adapter=pipe.adapt(TEXTS[1]), describe=True)
    assert prompts == ["<s>[INST] Be kind.<unk><unk>Add the two numbers.<unk>a [/INST] b</s>[INST] c [/INST]"]
    assert json.dumps(chat) == before


def test_an_adapter_without_description_has_none_to_show(pipe, prompts, make_adapter, monkeypatch):
    with pytest.raises(UserError, match="no description that could be put in the prompt"):
        pipe.chat("x", adapter=make_adapter(1), describe=True)
    monkeypatch.setattr(pipe, "describe", True)
    pipe.chat("x", adapter=make_adapter(1))
    assert prompts == ["<s>[INST] x [/INST]"]


def test_a_hypernetwork_that_was_trained_with_the_description_in_the_prompt(tiny_base, tiny_hyperlora, tmp_path):
    folder = shutil.copytree(tiny_hyperlora, tmp_path / "described")
    path = folder / "hyperlora_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt_style": "description_input"}))
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=folder)
    pipe.engine._eos = set()
    adapter = pipe.adapt(TEXTS[0])
    usual = pipe.chat("x", adapter=adapter, max_new_tokens=8)
    assert usual == pipe.chat("x", adapter=adapter, max_new_tokens=8, describe=True)
    assert usual == pipe.chat(f"{TEXTS[0]}\nx", adapter=adapter, max_new_tokens=8, describe=False)
    assert usual != pipe.chat("x", adapter=adapter, max_new_tokens=8, describe=False)
    pipe.close()


def test_a_single_turn_preset_keeps_the_system_message(single_turn):
    system, last = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "x y"}
    earlier = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    assert single_turn.chat([system, *earlier, last]) == single_turn.chat("Be kind.\n\nx y") != single_turn.chat("x y")


# ---- dropping it, and forking ----


@pytest.mark.parametrize("used", [False, True])
def test_a_pipeline_that_nobody_has_frees_its_models(tiny_base, tiny_hyperlora, used):
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=tiny_hyperlora)
    text = None
    if used:
        text = pipe.chat("x", adapter=pipe.adapt(TEXTS[0]), stream=True, max_new_tokens=3)
        list(text)
    parts = pipe.adapted.model, pipe.hyperlora, pipe.hyperlora.embedder.model, pipe
    parts, thread = [weakref.ref(part) for part in parts], pipe.engine._thread
    del pipe
    thread.join()
    gc.collect()
    assert [part() for part in parts] == [None] * 4
    assert text is None or text.finish_reason


@pytest.mark.filterwarnings("ignore:This process")  # what Python says of a fork with threads
def test_a_forked_process_gets_a_sentence(pipe, in_a_fork, tmp_path):
    pipe.adapt(TEXTS[0]).save_pretrained(tmp_path)
    for work in (
        lambda: pipe.adapt(TEXTS[0]),
        lambda: pipe.chat("x"),
        lambda: pipe.chat_batch(["x"]),
    ):
        assert in_a_fork(work).startswith("UserError: This process was forked after the model was loaded")
    assert in_a_fork(lambda: pipe.load_adapter(tmp_path).rank) == "8"  # that needs no thread


# ---- what does not fit ----


def test_bad_descriptions_and_messages(pipe):
    for text, sentence in [("", "empty"), ("\U0001f600" * 9, "no letter"), ("x" * 10_000, "10,000 characters")]:
        with pytest.raises(UserError, match=sentence):
            pipe.adapt(text)
    with pytest.raises(UserError, match="message is empty"):
        pipe.chat("   ")
    with pytest.raises(UserError, match="'num_beams' is not supported"):
        pipe.chat("x", num_beams=2)
    assert pipe.chat("x", max_new_tokens=3) is not None  # the engine goes on


def test_presets_and_folders_that_are_not_there(tiny_base, tiny_hyperlora, tmp_path):
    with pytest.raises(UserError, match=r"no preset 'nonsense'; there is mistral-7b, .*mini"):
        hyperlora.pipeline("nonsense")
    with pytest.raises(UserError, match="give both base and hyperlora"):
        hyperlora.pipeline(None, base=tiny_base)
    with pytest.raises(UserError, match="There is no folder"):
        hyperlora.pipeline(base=tiny_base, hyperlora=tmp_path / "nowhere")
    with pytest.raises(UserError, match="There is no folder"):
        hyperlora.pipeline(base=tmp_path / "nowhere", hyperlora=tiny_hyperlora)


def test_a_hypernetwork_for_another_base(tiny_base, make_config, tmp_path):
    HyperLoRA(make_config(num_layers=3)).save_pretrained(tmp_path / "deep")
    with pytest.raises(UserError, match=r"3 layers, but .* has 2"):
        hyperlora.pipeline(base=tiny_base, hyperlora=tmp_path / "deep")
    HyperLoRA(make_config(target_modules={"q_proj": (128, 128)})).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="q_proj"):
        hyperlora.pipeline(base=tiny_base, hyperlora=tmp_path / "wide")


def test_adapters_of_another_base_are_refused(pipe, make_adapter, tmp_path):
    deeper = {m: (torch.cat([a, a]), torch.cat([b, b])) for m, (a, b) in make_adapter(1).weights.items()}
    Adapter(deeper, 16.0, True).save_pretrained(tmp_path / "deep")
    with pytest.raises(UserError, match="4 layers and the base model 2"):
        pipe.load_adapter(tmp_path / "deep")
    make_adapter(1, base_model="somebody/another-base").save_pretrained(tmp_path / "named")
    with pytest.raises(UserError, match="made for the base model somebody/another-base, and this one is tiny-base"):
        pipe.load_adapter(tmp_path / "named")


@pytest.mark.parametrize("name", [None, "", "tiny-base", "owner/Tiny-Base", "/home/somebody/base", "./base", "~/base"])
def test_adapters_that_may_be_of_this_base_are_taken(pipe, make_adapter, tmp_path, name):
    make_adapter(1, base_model=name).save_pretrained(tmp_path)
    assert pipe.load_adapter(tmp_path).rank == 8


def test_damaged_adapter_folders(pipe, make_adapter, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        pipe.load_adapter(tmp_path / "nowhere")
    make_adapter(1).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    with pytest.raises(UserError, match="damaged"):
        pipe.load_adapter(tmp_path)
    weights.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"adapter_model\.bin"):
        pipe.load_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    weights.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        pipe.load_adapter(tmp_path)


def test_the_checkpoints_chat_template_is_used(tiny_base, tiny_hyperlora, tmp_path):
    folder = shutil.copytree(tiny_hyperlora, tmp_path / "template")
    path = folder / "hyperlora_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages[0]['content'] }}="}))
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=folder)
    assert pipe.tokenizer.decode(format_prompt(pipe.tokenizer, "1+1")) == "1+1="
    pipe.close()


# ---- options of the base, and checkpoints in the public format ----


def test_the_options_of_the_base_are_passed_on(tiny_base, tiny_hyperlora, answers):
    offloaded = hyperlora.pipeline(base=tiny_base, hyperlora=tiny_hyperlora, device_map={"": "disk"}, dtype="float32")
    offloaded.engine._eos = set()
    assert {parameter.device.type for parameter in offloaded.adapted.model.parameters()} == {"meta"}
    adapter = offloaded.adapt(TEXTS[0])
    answers(offloaded.chat("one two", adapter=adapter, stream=True, max_new_tokens=8), "one two", adapter, 8)
    offloaded.close()
    half = hyperlora.pipeline(base=tiny_base, hyperlora=tiny_hyperlora, dtype="bfloat16", attention="eager")
    model = half.adapted.model
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
    half.close()


def test_options_that_are_not_possible_here(tiny_base, tiny_hyperlora):
    pair = {"base": tiny_base, "hyperlora": tiny_hyperlora}
    for options, sentence in [
        ({"device": "tpu"}, "The device 'tpu' cannot be used here"),
        ({"embedder_device": "tpu"}, "The device 'tpu' cannot be used here"),
        ({"dtype": "int4"}, "The dtype 'int4' is not known"),
        ({"quantize": "4bit", "dtype": "float32"}, "4bit computes in bfloat16 or float16"),
        ({"base": "owner/base", "local_files_only": True}, "'owner/base' is no folder here and not in the cache"),
        ({"hyperlora": "owner/hyper", "local_files_only": True}, "local_files_only forbids a download"),
    ]:
        with pytest.raises(UserError, match=sentence):
            hyperlora.pipeline(**pair | options)


class Hashed:
    """A description encoder for the public checkpoints' small task inputs."""

    d_emb = 32

    def embed(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.randn(32, generator=torch.Generator().manual_seed(len(text))) for text in texts])


@pytest.fixture
def public(tiny_base, tmp_path, monkeypatch) -> dict:
    """A public checkpoint and a base of its shape; what is settled about it goes to an empty cache."""
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig.from_pretrained(folder, num_hidden_layers=4)).save_pretrained(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hyperlora.pipe.load_embedder", lambda *given: Hashed())
    checkpoint = shutil.copytree(Path(__file__).parent / "interop" / "L-sft-bias", tmp_path / "checkpoint")
    return {"base": folder, "hyperlora": checkpoint}


def opened(pair: dict) -> tuple[list[str], Adapter]:
    """The order of the module types, and an adapter."""
    pipe = hyperlora.pipeline(**pair)
    try:
        assert not pipe.hyperlora.config.module_order_assumed and pipe.hyperlora.name == pair["hyperlora"].name
        adapter = pipe.adapt(TEXTS[0])
        assert isinstance(pipe.chat("one", adapter=adapter, max_new_tokens=3), str)
        return list(pipe.hyperlora.config.target_modules), adapter
    finally:
        pipe.close()


@pytest.mark.parametrize("native", [False, True], ids=["public", "imported"])
def test_the_order_of_a_public_checkpoint_is_chosen_once_for_each_base(public, native, tmp_path, monkeypatch):
    if native:
        import_checkpoint(public["hyperlora"]).save_pretrained(tmp_path / "imported")
        public["hyperlora"] = tmp_path / "imported"
    chosen = []

    def choose(generator, adapted, tokenizer):
        assert generator.embedder and tokenizer.chat_template == generator.config.chat_template
        chosen.append(adapted)
        return with_order(generator, ["v_proj", "q_proj"])  # not what args.yaml says

    monkeypatch.setattr("hyperlora.interop.order.choose_order", choose)
    order, first = opened(public)
    again, second = opened(public)
    assert order == again == ["v_proj", "q_proj"] and len(chosen) == 1
    for module in first.weights:
        assert all(map(torch.equal, first.weights[module], second.weights[module]))
    opened(public | {"base": shutil.copytree(public["base"], tmp_path / "another")})
    assert len(chosen) == 2

    for file in (tmp_path / "cache").rglob("*.safetensors"):  # damaged: it is chosen again
        file.write_bytes(file.read_bytes()[:100])
    assert opened(public)[0] == order and len(chosen) == 3
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(public["base"] / "config.json"))
    assert opened(public)[0] == order and len(chosen) == 4  # nothing can be written there


def test_the_chosen_order_is_that_of_the_lower_loss(public):
    order, adapter = opened(public)
    assert sorted(order) == ["q_proj", "v_proj"]
    right = import_checkpoint(public["hyperlora"], order=order)
    [expected] = right.generate(embeddings=Hashed().embed(TEXTS[:1]))
    for module in order:
        for mine, plain in zip(adapter.weights[module], expected.weights[module], strict=True):
            torch.testing.assert_close(mine, plain)
