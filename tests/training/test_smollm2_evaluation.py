"""The evaluation over SmolLM2, on the tiny base: its splits, open requests, report, and going on after a kill."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from hyperlora.errors import UserError
from training.parts.adapters import save_adapters
from training.parts.batches import encode_prompts
from training.parts.conversations import AFTER_ANOTHER, FIRST, FOURTH
from training.parts.kinds import NO_DESCRIPTION, UNSEEN
from training.parts.results import read_results
from training.parts.scoring import answer
from training.sft import SFTConfig, build
from training.smollm2 import evaluation
from training.smollm2.evaluation import dialogues, main, splits_of
from training.smollm2.open_requests import OpenRequest, measure_open, open_requests
from training.smollm2.report import Results, figures, report


def test_the_dialogues_are_twenty_and_need_an_earlier_turn():
    found = dialogues()
    assert len(found) == 20 and len({task.eval_descriptions[0] + task.test[0]["input"] for task in found}) == 20
    for task in found:
        [example] = task.test
        assert example["output"] == example["outputs"][0] and len(example["turns"]) >= 1
        assert example["output"].casefold() not in example["input"].casefold()


def test_open_requests_are_forty_with_five_messages_each():
    found = open_requests()
    assert len(found) == 40 and {len(request.messages) for request in found} == {5}


def test_splits_have_names_of_their_own_and_marks(tmp_path, tasks):
    for name in ("sum", "rhymes"):
        replace(tasks[0], name=name).save(tmp_path / "induction")
    asked = [{"description": "Say hi.", "messages": [{"input": "a", "outputs": ["hi"]}], "trained": True}]
    (tmp_path / "theirs.json").write_text(json.dumps(asked))
    drawn, whole, marks = splits_of(
        {"trained": tasks, "near": [], "far": tasks[:1]}, tmp_path / "induction", [tmp_path / "theirs.json"]
    )
    assert set(drawn) == {"trained tasks", "far tasks", "instruction induction"}
    assert marks["instruction induction"] == {"induction_rhymes": "other kind", "induction_sum": "trained kind"}
    assert set(whole) == {"everyday requests", "requests of theirs", "dialogues"}
    assert marks["requests of theirs"] == {"request-001": "trained kind"}
    assert len(whole["everyday requests"]) == len(marks["everyday requests"]) == 100
    (tmp_path / "more").mkdir()
    again = (tmp_path / "more" / "theirs.json", tmp_path / "theirs.json")
    again[0].write_text(json.dumps(asked))
    with pytest.raises(UserError, match="Two files of requests are called theirs"):
        splits_of({}, None, again)


def test_kl_is_that_of_the_two_models_token_by_token(adapted, tokenizer, strong):
    """Against the base with the adapter's delta W in its weights, one row at a time without padding."""
    requests = [OpenRequest("Be kind.", ("hello", "and why is that so")), OpenRequest("Be short.", ("ok",))]
    adapters, n = [strong(1), strong(2)], 6
    rows = measure_open(adapted, tokenizer, requests, {"base": [None, None], "M": adapters}, n)
    found = {(row["method"], row["request"]): row for row in rows}
    assert len(found) == len(rows) == 6
    for i, request in enumerate(requests):
        models = {"base": adapted.model, "M": copy.deepcopy(adapted.model)}
        for module in ("q_proj", "v_proj"):
            for number, layer in enumerate(models["M"].model.layers):
                linear = getattr(layer.self_attn, module)
                linear._forward_hooks.clear()
                linear.weight.data += adapters[i].delta_w(module, number)
        expected, lengths = {"base": [], "M": []}, []
        for message in request.messages:
            prompts = encode_prompts(tokenizer, [f"{request.description}\n{message}", message])
            [text] = answer(adapted, tokenizer, prompts[:1], [None], n)
            lengths.append(len(tokenizer(text, add_special_tokens=False).input_ids))
            chat = [{"role": "user", "content": message}, {"role": "assistant", "content": text}]
            whole = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False).input_ids
            forced = whole[len(prompts[1]) :][:n]
            logits = [adapted.model(torch.tensor([prompts[0] + forced])).logits]
            logits += [models[name](torch.tensor([prompts[1] + forced])).logits for name in expected]
            p, *others = (each[0, -len(forced) - 1 : -1].softmax(-1) for each in logits)
            for name, q in zip(expected, others, strict=True):
                expected[name].append((p * (p / q).log()).sum(-1).mean().item())
        for name, values in expected.items():
            assert found[name, i]["kl"] == pytest.approx(sum(values) / len(values), rel=1e-3)
        assert found["base, prompted", i]["kl"] == 0
        assert found["base, prompted", i]["length"] == sum(lengths) / len(lengths)
    assert found["M", 0]["kl"] > 0.01


def row(split: str, method: str, task: str, score: float, kind: str = UNSEEN) -> dict:
    return {"split": split, "method": method, "task": task, "score": score, "contains": score, "kind": kind, "seed": 0}


@pytest.fixture
def rows() -> list[dict]:
    """Ours is better with the description in the prompt on trained tasks, and everywhere as was to be reached."""
    levels = {
        "trained tasks": {"HyperLoRA M": 0.5, "HyperLoRA M, prompted": 0.8, "oracle LoRA": 0.85,
                          "multi-task LoRA": 0.2, "multi-task LoRA, prompted": 0.6},
        "near tasks": {"HyperLoRA M": 0.9, "HyperLoRA M, prompted": 0.6, "base, prompted": 0.1, "multi-task LoRA": 0.4,
                       "multi-task LoRA, prompted": 0.3, "Arrow routing": 0.3, "retrieval": 0.5},
        "everyday requests": {"HyperLoRA M, prompted": 0.75, "multi-task LoRA, prompted": 0.5},
        FIRST: {"HyperLoRA M, prompted": 0.6}, FOURTH: {"HyperLoRA M, prompted": 0.58},
        AFTER_ANOTHER: {"HyperLoRA M, prompted": 0.5},
    }  # fmt: skip
    return [
        row(split, method, f"task {i}", mean + (0.02 if i % 2 else -0.02))
        for split, methods in levels.items()
        for method, mean in methods.items()
        for i in range(12)
    ]


OPEN = [
    {"method": method, "request": i, "kl": kl, "length": length, "loops": loops}
    for method, kl, length, loops in (
        ("base, prompted", 0.0, 50, 0), ("base", 1.0, 60, 2), ("HyperLoRA M", 0.4, 40, 0),
    )
    for i in range(3)
]  # fmt: skip


def test_figures_say_what_was_reached(rows):
    marks = {"everyday requests": {f"task {i}": "trained kind" if i < 5 else "other kind" for i in range(12)}}
    found = {figure.name: figure for figure in figures(Results(rows), OPEN, marks)}
    share = found["trained tasks: part of what their own LoRAs reach"]
    assert share.measured == "0.94 (0.80 of 0.85, 12 tasks)" and share.reached
    gap = found["trained tasks: part closed of the gap from the prompted multi-task LoRA to own LoRAs"]
    assert gap.measured == "0.80 (multi-task 0.60, own 0.85)" and gap.reached
    near = found["near tasks, against multi-task LoRA"]  # its better form; four tests, p of each 2 in 2^12
    assert near.measured == "0.60 against 0.40 (+0.20, +0.20 to +0.20), p = 0.002, 12 tasks" and near.reached
    assert {name for name in found if name.startswith("near")} == {
        f"near tasks, against {method}"
        for method in ("base, prompted", "multi-task LoRA", "Arrow routing", "retrieval")
    }
    assert found["everyday requests, answered"].reached and found["everyday requests, against multi-task LoRA"].reached
    assert found["everyday requests, trained kind"].measured == "0.75 (5)"
    assert found["fourth turn, against the first"].reached
    assert found["fourth turn after another adapter's, against the first"].reached is False
    open_figures = [figure for name, figure in found.items() if name.startswith("open")]
    assert [figure.measured for figure in open_figures] == [
        "0.40 (0.400 of 1.000 nats)", "0.80 (40 of 50 tokens)", "0 (0 of the prompted base's)",
    ]  # fmt: skip
    assert all(figure.reached for figure in open_figures)


def test_what_was_not_reached_is_said_so(rows):
    lower = [r | {"score": r["score"] - 0.4 if r["method"].startswith("HyperLoRA") else r["score"]} for r in rows]
    worse = [r | {"kl": 0.9, "length": 30, "loops": 1} if r["method"] == "HyperLoRA M" else r for r in OPEN]
    found = figures(Results(lower), worse, {})
    assert {figure.name for figure in found if figure.reached} == {
        "near tasks, against base, prompted", "fourth turn, against the first",
    }  # fmt: skip
    text, _ = report(lower, worse, {})
    assert "| open requests: answers that loop | 3 (0 of the prompted base's) | 0 | **no** |" in text


def test_the_form_is_that_of_the_trained_tasks(rows):
    assert report(rows, OPEN, {})[1]
    other = [r | {"score": 0.9} if r["method"] == "HyperLoRA M" else r for r in rows]
    text, describe = report(other, OPEN, {})
    assert not describe and text.startswith("HyperLoRA M with the input alone")


def command(**options) -> list[str]:
    parts = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [str(part) for name, values in parts.items() for part in (f"--{name}", *values)]


@pytest.fixture
def small(monkeypatch):
    """Two requests of everything that comes in hundreds."""
    for name in ("everyday_requests", "open_requests"):
        every = getattr(evaluation, name)
        monkeypatch.setattr(evaluation, name, lambda *path, every=every: every(*path)[:2])
    every = evaluation.dialogues
    monkeypatch.setattr(evaluation, "dialogues", lambda: every()[:2])


def test_the_command_measures_all_and_goes_on_after_a_kill(
    tasks, adapted, tokenizer, make_adapter, tiny_base, tmp_path, embedder, monkeypatch, small, capsys
):
    folders = {"trained": tasks[:2], "near": tasks[2:], "far": [replace(tasks[0], name="third")]}
    for name, own in folders.items():
        for task in own:
            task.save(tmp_path / "tasks" / name)
    replace(tasks[1], name="sum").save(tmp_path / "induction")
    build(adapted, tokenizer, tasks[:2], SFTConfig(), make_adapter(1), embedder).save_pretrained(tmp_path / "m")
    names = ["multi_task", "average", "first", "second"]
    loras = {name: replace(make_adapter(i), prompt_style="either") for i, name in enumerate(names)}
    save_adapters(tmp_path / "loras", loras, {})
    monkeypatch.setattr("hyperlora.generator.load_embedder", lambda *_: embedder)
    monkeypatch.setattr("training.parts.adapters.Adapter.from_pretrained", lambda folder: loras[folder.name])
    few = {"examples": 1, "seeds": 1, "turned": 2, "open_tokens": 4, "max_new_tokens": 4}
    sources = {"tasks": tmp_path / "tasks", "base": tiny_base, "hyperlora": tmp_path / "m"}
    sources |= {"adapters": tmp_path / "loras", "instruction_induction": tmp_path / "induction"}
    arguments = command(**sources, output=tmp_path / "out", **few)
    main(arguments)
    rows, settings = read_results(tmp_path / "out" / "results.json")
    splits = {r["split"] for r in rows}
    assert splits == {
        "trained tasks", "near tasks", "far tasks", "instruction induction", "everyday requests", "dialogues",
        FIRST, FOURTH, AFTER_ANOTHER,
    }  # fmt: skip
    methods = {r["method"] for r in rows if r["split"] == "trained tasks"}
    twice = ["base", "base, few-shot", "multi-task LoRA", "average LoRA", "Arrow routing", "nearest task's LoRA"]
    twice += ["HyperLoRA M", "oracle LoRA"]
    assert methods == {"majority label", "retrieval", *twice, *(f"{method}, prompted" for method in twice)}
    turned = {r["method"] for r in rows if r["split"] == FOURTH}
    assert turned == {"base, prompted", "multi-task LoRA", "multi-task LoRA, prompted", "HyperLoRA M"}
    assert {r["kind"] for r in rows} == {UNSEEN, NO_DESCRIPTION}
    assert len(settings["open"]) == 2 * 4 and settings["marks"]["instruction induction"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| near tasks, against base, prompted |" in text and "| open requests: answers that loop |" in text
    assert text in capsys.readouterr().out
    monkeypatch.setattr("training.parts.scoring.decode", lambda *_, **__: pytest.fail("it was answered before"))
    main(arguments)  # as after a kill
    assert read_results(tmp_path / "out" / "results.json") == (rows, settings)


def test_the_base_alone_may_be_measured(tasks, tiny_base, tmp_path, small):
    tasks[0].save(tmp_path / "tasks" / "near")
    few = {"examples": 1, "seeds": 1, "turned": 0, "open_requests": 0, "max_new_tokens": 4}
    main(command(tasks=tmp_path / "tasks", base=tiny_base, output=tmp_path / "out", **few))
    rows, _ = read_results(tmp_path / "out" / "results.json")
    assert {r["method"] for r in rows if r["split"] == "near tasks"} == {
        "base", "base, prompted", "base, few-shot", "base, few-shot, prompted", "majority label",
    }  # fmt: skip
    assert "| base, prompted | unseen |" in (tmp_path / "out" / "results.md").read_text()


def test_a_folder_without_any_of_the_three_is_refused(tmp_path):
    with pytest.raises(UserError, match="has none of the folders trained, near and far"):
        main(command(tasks=tmp_path, base="none", output=tmp_path / "out"))


def test_trained_tasks_are_measured_first_where_they_have_loras(
    adapted, tokenizer, tasks, make_adapter, tmp_path, small
):
    plan = evaluation.Plan(examples=1, seeds=1, trained=1, turned=0, open_requests=0, max_new_tokens=2)
    given = {"trained": [*tasks, *(replace(tasks[0], name=f"more-{i}") for i in range(5))]}
    evaluation.run_evaluation(tmp_path, adapted, tokenizer, "", given, None, {"second": make_adapter(1)}, plan)
    rows, _ = read_results(tmp_path / "results.json")
    assert {r["task"] for r in rows if r["split"] == "trained tasks"} == {"second"}
