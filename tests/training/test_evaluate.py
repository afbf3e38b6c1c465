from dataclasses import replace

import pytest
import torch

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from tests.training.parts.test_scoring import echo_first_words
from training.evaluate import Settings, evaluate, main
from training.parts.adapters import load_adapters, save_adapters
from training.parts.arrow import Arrow
from training.parts.baselines import NearestLoRA, Retrieval
from training.parts.batches import encode_prompts
from training.parts.kinds import KINDS, NO_DESCRIPTION, OTHER, RANDOM, SEEN, UNSEEN
from training.parts.results import read_results, summary_table
from training.parts.scoring import Trial, answer, respond, score
from training.parts.sources import Sources
from training.sft import SFTConfig, build
from training.tasks import Task


def test_any_accepted_output_is_right(adapted, tokenizer, monkeypatch):
    monkeypatch.setattr("training.parts.scoring.decode", echo_first_words(tokenizer, 3))
    example = {"input": "abc or more", "output": "a", "outputs": ["a", "abc"]}
    assert score(adapted, tokenizer, [Trial(Task("t", ["Do it."]), [example])]) == [1]


def test_rouge_l_reads_whole_answers(adapted, tokenizer, tasks, monkeypatch):
    """The answer "red or blue" against "red": too long for an exact match, 1 of 3 words right and 1 of 1 found."""
    monkeypatch.setattr("training.parts.scoring.decode", echo_first_words(tokenizer, 11))
    task = Task("t", ["Do it."], test=[{"input": "red or blue or green", "output": "red"}])
    settings = Settings(examples=1, seeds=1, rouge_l=True, max_new_tokens=20)
    rows = evaluate(adapted, tokenizer, {"new": [task]}, tasks, {}, {}, settings)
    base = next(row for row in rows if row["method"] == "base")
    assert base["score"] == 0 and base["rouge_l"] == pytest.approx(0.5)
    assert "| base | none | 0.50 |" in summary_table(rows, "rouge_l")
    rows = evaluate(adapted, tokenizer, {"new": [task]}, tasks, {}, {}, Settings(examples=1, seeds=1))
    assert not any("rouge_l" in row for row in rows)


def test_seen_is_what_the_hypernetwork_was_trained_on(adapted, tokenizer, tasks, embedder, make_adapter, monkeypatch):
    """Of a task's many descriptions it may have been trained on some; one may be longer than the page takes."""
    tasks[0].eval_descriptions = ["Now first." + " " * 3000 + "Really."]
    config = SFTConfig(max_descriptions=1)
    hyperlora = build(adapted, tokenizer, tasks, config, make_adapter(1), embedder)
    asked, embed = [], embedder.embed
    monkeypatch.setattr(embedder, "embed", lambda texts: asked.extend(texts) or embed(texts))
    rows = evaluate(adapted, tokenizer, {"all": tasks}, tasks, {"M": hyperlora}, {}, Settings(examples=1, seeds=1))
    first = [text for text in asked if "first" in text]
    assert tasks[0].eval_descriptions[0] in first and len({"Do first.", "Please first."} & set(first)) == 1
    assert {row["kind"] for row in rows if row["method"] == "M"} == {SEEN, UNSEEN, OTHER, RANDOM}


def test_retrieval_takes_the_adapter_of_the_nearest_training_description(
    adapted, tokenizer, tasks, embedder, make_adapter, monkeypatch
):
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(), make_adapter(1), embedder)
    torch.nn.init.normal_(hyperlora.network.heads["q_proj"].weight, std=0.1)
    embed = embedder.embed
    near = {"Second, please!": "Please second."}  # as an encoder that understands paraphrases places it
    monkeypatch.setattr(embedder, "embed", lambda texts: embed([near.get(text, text) for text in texts]) + 0.01)
    [found] = Retrieval(hyperlora).generate(["Second, please!"])
    [expected] = hyperlora.generate(["Please second."])
    assert found.nearest[0] == "Please second."
    assert torch.equal(found.weights["q_proj"][0], expected.weights["q_proj"][0])


def test_the_nearest_tasks_lora_comes_from_the_library(tasks, embedder, make_adapter, monkeypatch):
    adapters = {"first": make_adapter(1), "second": make_adapter(2), "multi_task": make_adapter(3)}
    nearest = NearestLoRA(embedder, tasks, adapters)
    assert nearest.generate(["Please second.", "Do first."]) == [adapters["second"], adapters["first"]]
    assert nearest.generate(["Do both."])[0] in (adapters["first"], adapters["second"])  # it has none in the library


def test_arrow_routes_over_the_trained_tasks_loras(adapted, tokenizer, tasks, strong):
    """Not over the multi-task LoRA, nor over the held-out task's own."""
    adapters = {name: strong(i) for i, name in enumerate(["first", "second", "multi_task", "third"])}
    held_out = Task("third", ["Do third."], test=[{"input": "abc", "output": "c"}] * 4)
    texts = ["a", "abc", "b c d", "xyz"]
    prompts = encode_prompts(tokenizer, texts)
    with Arrow(adapted, [adapters["first"], adapters["second"]], top_k=1).use():
        answers = answer(adapted, tokenizer, prompts, [None] * 4, max_new_tokens=8)
    assert len(set(answers)) > 1
    held_out.test = [{"input": i, "output": o} for i, o in zip(texts, answers, strict=True)]
    settings = Settings(examples=4, seeds=1, arrow_top_k=1, rouge_l=True, max_new_tokens=8)
    rows = evaluate(adapted, tokenizer, {"new": [held_out]}, tasks, {}, adapters, settings)
    scores = {row["method"]: row["score"] for row in rows}
    assert scores["Arrow routing"] == 1
    assert scores["oracle LoRA"] < 1 and scores["base"] < 1


def test_a_hypernetwork_that_numbers_its_tasks_is_measured_on_them(adapted, tokenizer, tasks, make_adapter):
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(task_input="one_hot"), make_adapter(1))
    torch.nn.init.normal_(hyperlora.network.heads["q_proj"].weight, std=0.1)
    [second] = hyperlora.generate(embeddings=torch.eye(3)[1:2])
    test = tasks[1].test
    texts = answer(adapted, tokenizer, encode_prompts(tokenizer, [e["input"] for e in test]), [second] * len(test), 8)
    tasks[1].test = [example | {"output": text} for example, text in zip(test, texts, strict=True)]
    new = Task("third", ["Do third."], test=[{"input": "abc", "output": "c"}])
    settings = Settings(examples=99, seeds=1, rouge_l=True, max_new_tokens=8)
    rows = evaluate(adapted, tokenizer, {"all": [*tasks, new]}, tasks, {"one-hot": hyperlora}, {}, settings)
    found = {row["task"]: row for row in rows if row["method"] == "one-hot"}
    assert set(found) == {"first", "second", "both"} and found["second"]["score"] == 1
    assert found["first"]["score"] < 1
    assert not any(row["method"] in ("retrieval", "one-hot, prompted") for row in rows)
    turned = evaluate(adapted, tokenizer, {"all": tasks}, tasks[::-1], {"one-hot": hyperlora}, {}, settings)
    assert {row["task"]: row["score"] for row in turned if row["method"] == "one-hot"} == {
        task: row["score"] for task, row in found.items()
    }  # the checkpoint knows its tasks' names
    hyperlora.config.task_names = None
    with pytest.raises(UserError, match="numbers 3 tasks, and there are 2"):
        evaluate(adapted, tokenizer, {"all": tasks}, tasks[:2], {"one-hot": hyperlora}, {}, settings)


def test_a_hypernetwork_is_measured_with_the_prompts_that_it_was_trained_with(
    adapted, tokenizer, tasks, embedder, make_adapter
):
    """Its right answers here are those that it gives with the description in the prompt."""
    test = [{"input": text, "output": ""} for text in ("a", "abc", "b c d", "xyz")]
    task, settings = Task("third", ["Do third."], test=test), Settings(4, seeds=1, rouge_l=True, max_new_tokens=8)
    scores = {}
    for style in ("input", "description_input"):
        config = SFTConfig(prompt_style=style, offset="none")
        hyperlora = build(adapted, tokenizer, tasks, config, embedder=embedder)
        for head in hyperlora.network.heads.values():
            torch.nn.init.normal_(head.weight, std=0.3)
        [adapter] = hyperlora.generate("Do third.")
        trial = Trial(task, test, UNSEEN, "Do third.", adapter, style="description_input")
        [answers] = respond(adapted, tokenizer, [trial], limit=lambda _: 8)
        task.test = [{"input": example["input"], "output": text} for example, text in zip(test, answers, strict=True)]
        rows = evaluate(adapted, tokenizer, {"new": [task]}, tasks, {"HyperLoRA M": hyperlora}, {}, settings)
        scores[style] = {row["method"]: row["score"] for row in rows if row["kind"] == UNSEEN}
    assert scores["input"]["HyperLoRA M"] < 1 == scores["input"]["HyperLoRA M, prompted"]
    assert scores["description_input"]["HyperLoRA M"] == 1
    assert "HyperLoRA M, prompted" not in scores["description_input"]  # it would be the same again


def test_a_hypernetwork_without_training_descriptions_is_measured_too(
    adapted, tokenizer, tasks, embedder, make_adapter
):
    """As imported ones are: there is none to retrieve."""
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(), make_adapter(1), embedder)
    hyperlora.set_descriptions([], torch.empty(0, embedder.d_emb))
    rows = evaluate(adapted, tokenizer, {"all": tasks}, tasks, {"M": hyperlora}, {}, Settings(examples=1, seeds=1))
    methods = {row["method"] for row in rows}
    assert "M" in methods and "retrieval" not in methods


def test_plain_loras_are_measured_with_the_prompts_that_they_were_trained_with(
    adapted, tokenizer, tasks, embedder, make_adapter, tmp_path, monkeypatch
):
    shown = [replace(make_adapter(seed), prompt_style="description_input") for seed in range(5)]
    names = ["first", "second", "both", "multi_task", "average"]
    save_adapters(tmp_path, dict(zip(names, shown, strict=True)), {})
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(), make_adapter(1), embedder)
    asked = []
    monkeypatch.setattr(
        "training.evaluate.respond",
        lambda adapted, tokenizer, trials, *_: asked.extend(trials) or [["x"] * len(t.examples) for t in trials],
    )
    settings = Settings(examples=1, seeds=1)
    rows = evaluate(adapted, tokenizer, {"all": tasks}, tasks, {"M": hyperlora}, load_adapters(tmp_path), settings)
    assert {trial.style for trial in asked if trial.adapter and trial.adapter.prompt_style != "input"} == {
        "description_input"
    }
    for method in ("oracle LoRA", "multi-task LoRA", "average LoRA", "Arrow routing"):
        assert {row["kind"] for row in rows if row["method"] == method} == {SEEN, UNSEEN}, method
    assert {trial.style for trial in asked if trial.adapter is None and trial.kind == NO_DESCRIPTION} == {"input"}


def test_the_chat_template_is_the_checkpoints(make_config, tiny_base, tmp_path):
    templates = {"a": "{{ messages[0]['content'] }}=", "b": "{{ messages[0]['content'] }}:"}
    for name, template in templates.items():
        HyperLoRA(make_config(chat_template=template)).save_pretrained(tmp_path / name)
    _, tokenizer, *_ = Sources(base=str(tiny_base), hyperlora=[str(tmp_path / "a")]).load()
    assert tokenizer.decode(encode_prompts(tokenizer, ["1+1"])[0]) == "1+1="
    with pytest.raises(UserError, match="different chat templates"):
        Sources(base=str(tiny_base), hyperlora=[str(tmp_path / name) for name in templates]).load()


def test_adapters_that_do_not_fit_in_memory_together_give_the_same_rows(
    adapted, tokenizer, tasks, embedder, make_adapter, monkeypatch
):
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(), make_adapter(1), embedder)
    arguments = adapted, tokenizer, {"trained": tasks}, tasks, {"HyperLoRA M": hyperlora}, {}, Settings(2, 1, 1)
    rows = evaluate(*arguments)
    monkeypatch.setattr("training.evaluate.MAX_ADAPTER_BYTES", 0)
    monkeypatch.setattr(adapted, "max_adapters", 4)  # one task's
    assert evaluate(*arguments) == rows


def test_what_was_trained_with_either_prompt_is_measured_with_both(
    adapted, tokenizer, tasks, embedder, make_adapter, monkeypatch
):
    """Input alone with every kind of description, and with aligned ones in the prompt too."""
    names = ["first", "second", "both", "multi_task", "average"]
    adapters = {name: replace(make_adapter(i), prompt_style="either") for i, name in enumerate(names)}
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(), make_adapter(1), embedder)
    monkeypatch.setitem(hyperlora.config.__dict__, "prompt_style", "either")
    asked = {}

    def keep(adapted, tokenizer, trials, *_):
        asked.update({(trial.style, trial.kind, id(trial.adapter)): trial for trial in trials})
        return [["x"] * len(trial.examples) for trial in trials]

    monkeypatch.setattr("training.evaluate.respond", keep)
    rows = evaluate(adapted, tokenizer, {"all": tasks}, tasks, {"M": hyperlora}, adapters, Settings(1, 1, 1))
    kinds = {method: {row["kind"] for row in rows if row["method"] == method} for method in {r["method"] for r in rows}}
    plain = ["multi-task LoRA", "average LoRA", "Arrow routing", "oracle LoRA", "base", "base, few-shot"]
    reading = ["nearest task's LoRA", "retrieval", "M"]
    assert kinds == {method: {NO_DESCRIPTION} for method in [*plain, "majority label"]} | {
        method: set(KINDS) for method in reading
    } | {f"{method}, prompted": {SEEN, UNSEEN} for method in plain + reading}
    own = {(style, kind) for style, kind, adapter in asked if adapter == id(adapters["first"])}
    assert {("input", NO_DESCRIPTION), ("description_input", SEEN), ("description_input", UNSEEN)} <= own


def test_the_majority_label_is_the_commonest_training_answer(adapted, tokenizer):
    train = [{"input": str(i), "output": "yes" if i % 3 else "no"} for i in range(9)]
    test = [{"input": "a", "output": "Yes"}, {"input": "b", "output": "no"}]
    splits = {"new": [Task("t", ["Do."], train=train, test=test), Task("u", ["Do."], test=test)]}
    for chat, right in ((True, 0.5), (False, 0)):
        rows = evaluate(adapted, tokenizer, splits, [], {}, {}, Settings(seeds=1, chat=chat, max_new_tokens=4))
        assert [(row["task"], row["score"]) for row in rows if row["method"] == "majority label"] == [("t", right)]
        assert all(("contains" in row) == chat for row in rows)


def test_some_kinds_of_description_may_be_left_out(adapted, tokenizer, tasks):
    settings = Settings(1, 1, 1, kinds=[UNSEEN])
    rows = evaluate(adapted, tokenizer, {"all": tasks}, tasks, {}, {}, settings)
    assert {row["kind"] for row in rows} == {UNSEEN, NO_DESCRIPTION}


def test_every_method_is_measured_where_it_can_be(adapted, tokenizer, tasks, embedder, make_adapter):
    hyperlora = build(adapted, tokenizer, tasks, SFTConfig(), make_adapter(1), embedder)
    held_out = [Task("third", ["Do third."], test=[{"input": "abc", "output": "c"}] * 3)]
    adapters = {"multi_task": make_adapter(1), "first": make_adapter(2), "third": make_adapter(3)}
    rows = evaluate(
        adapted,
        tokenizer,
        {"trained": tasks, "new": held_out},
        tasks,
        {"HyperLoRA M": hyperlora},
        adapters,
        Settings(examples=2, descriptions=1, seeds=2),
    )
    seen = {(row["method"], row["split"], row["kind"]) for row in rows}
    for method in ("nearest task's LoRA", "retrieval", "HyperLoRA M"):
        assert {kind for m, split, kind in seen if (m, split) == (method, "trained")} == set(KINDS)
        assert {kind for m, split, kind in seen if (m, split) == (method, "new")} == set(KINDS) - {SEEN}
    assert ("HyperLoRA M, prompted", "trained", UNSEEN) in seen and ("base, prompted", "new", UNSEEN) in seen
    assert ("Arrow routing", "new", NO_DESCRIPTION) in seen
    assert {split for method, split, _ in seen if method == "base, few-shot"} == {"trained"}  # the new one has no train
    oracles = {row["task"] for row in rows if row["method"] == "oracle LoRA"}
    assert oracles == {"first", "third"}
    assert not any(method == "average LoRA" for method, _, _ in seen)
    assert {row["seed"] for row in rows} == {0, 1}
    assert "| HyperLoRA M | unseen |" in summary_table(rows)


def command(**options) -> list[str]:
    """{"name": value or values} -> --name value .."""
    parts = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [str(part) for name, values in parts.items() for part in (f"--{name}", *values)]


def test_the_command_line_writes_the_results(
    tasks, adapted, tokenizer, make_adapter, tiny_base, tmp_path, embedder, monkeypatch
):
    """Every kind of row, of checkpoints and LoRAs on the disk; a task that was held out has its own LoRA too."""
    trained, held_out = tasks[:2], tasks[2:]
    for task in tasks:
        task.save(tmp_path / ("tasks" if task in trained else "new"))
    for name, config in {"m": SFTConfig(), "numbers": SFTConfig(task_input="one_hot")}.items():
        build(adapted, tokenizer, trained, config, make_adapter(1), embedder).save_pretrained(tmp_path / name)
    names = ["multi_task", "average", *(task.name for task in tasks)]
    save_adapters(tmp_path / "loras", {name: make_adapter(i) for i, name in enumerate(names)}, {})
    monkeypatch.setattr("hyperlora.generator.load_embedder", lambda *_: embedder)
    few = {"examples": 1, "seeds": 1, "descriptions": 1, "shots": 3, "max_new_tokens": 4}
    folders = {name: tmp_path / name for name in ("m", "numbers")}
    sources = {"tasks": tmp_path / "tasks", "held_out": tmp_path / "new", "base": tiny_base}
    sources |= {"hyperlora": list(folders.values()), "adapters": tmp_path / "loras"}
    main([*command(**sources, output=tmp_path / "out.json", **few), "--rouge_l"])
    rows, settings = read_results(tmp_path / "out.json")  # as training.analysis reads them
    assert settings["examples"] == 1
    found = {split: {row["method"] for row in rows if row["split"] == split} for split in ("trained tasks", "new")}
    assert found["new"] == {
        "base", "base, prompted", "base, few-shot", "base, few-shot, prompted", "majority label",
        "multi-task LoRA", "average LoRA", "Arrow routing",
        "nearest task's LoRA", "retrieval", "HyperLoRA M", "HyperLoRA M, prompted", "oracle LoRA",
    }  # fmt: skip
    assert found["trained tasks"] == found["new"] | {f"HyperLoRA M ({folders['numbers']})"}
    assert {row["task"] for row in rows if row["split"] == "new"} == {task.name for task in held_out}
    monkeypatch.setattr("training.parts.scoring.decode", lambda *_, **__: pytest.fail("it was answered before"))
    main([*command(**sources, output=tmp_path / "out.json", **few), "--rouge_l"])  # as after a kill
    assert read_results(tmp_path / "out.json")[0] == rows
    report = (tmp_path / "out.md").read_text()
    assert report.startswith("Exact match, per cent") and "ROUGE-L, per cent" in report
    assert report.count("| *Zero-shot adaptation* |") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "examples is 0, but must be at least 1"),
        ({"seeds": 0}, "seeds is 0, but must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ({"descriptions": -1}, "descriptions is -1, but must be at least 1"),
        ({"shots": -1}, "shots is -1, but must be at least 0"),
        ({"held_out": ["new", "old/new"]}, "two splits 'new'"),
        ({"kinds": ["unseen", "new"]}, "no kind of description 'new'"),
        ({"tasks": "untested"}, 'None of these tasks has "test" examples'),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_base_is_loaded(tasks, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("tasks", "new", "old/new"):
        tasks[0].save(tmp_path / folder)
    replace(tasks[0], test=[]).save(tmp_path / "untested")
    with pytest.raises(UserError, match=message):
        main(command(**{"tasks": "tasks", "base": "none", "output": "results.json"} | options))


def test_an_output_that_cannot_be_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "table.md", tmp_path / "file" / "results.json"):
        with pytest.raises(UserError, match="output"):
            main(["--tasks", "none", "--base", "none", "--output", str(output)])
