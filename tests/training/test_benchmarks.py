"""lm-eval on data sets of a few lines, since the real ones have to be downloaded."""

import json
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from tokenizers import processors

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.prompt import TRAINED
from training import benchmarks
from training.benchmarks import BENCHMARKS, AdaptedLM, Benchmark, choose, main, run_benchmark
from training.parts.adapters import save_adapters
from training.parts.batches import IGNORE, encode
from training.parts.results import read_results
from training.sft import SFTConfig, build

QUESTIONS = [
    {"question": f"{a}{b}?", "choices": [a, b + a, "z" * 3], "answer": (i + j) % 3}
    for i, a in enumerate("abcd")
    for j, b in enumerate("wxyz")
]


@pytest.fixture
def make_benchmark(tmp_path):
    """make_benchmark(name, **fields): 12 test questions and 4 training ones as an lm-eval task."""

    def make(name: str, runs_code: bool = False, **fields) -> Benchmark:
        files = {"train": QUESTIONS[12:], "test": QUESTIONS[:12]}
        for split, rows in files.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{split}.jsonl").write_text(text)
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {split: str(tmp_path / f"{split}.jsonl") for split in files},
                "cache_dir": str(tmp_path / "cache"),
            },
            "training_split": "train",
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "doc_to_choice": "{{choices}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "unsafe_code": runs_code,
        }
        return Benchmark(name, name.title(), config | fields, "acc,none", runs_code=runs_code)

    return make


@pytest.fixture
def written(make_benchmark):
    """A task whose answer is written out: right where the adapted model says what the base says."""
    fields = {"output_type": "generate_until", "doc_to_target": "{{choices[0]}}", "doc_to_choice": None}
    fields |= {"generation_kwargs": {"max_gen_toks": 4, "until": ["\n"], "do_sample": False}}
    fields |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
    benchmark = make_benchmark("written", **fields)
    return Benchmark("written", "Written", benchmark.task, "exact_match,none")


def expected_accuracy(model, tokenizer, description: str | None = None) -> float:
    """The choice to which a plain model gives the highest probability as the answer of a chat."""
    right = 0
    for row in QUESTIONS[:12]:
        sums = []
        text = row["question"] if description is None else f"{description}\n{row['question']}"
        for choice in row["choices"]:
            chat = [{"role": "user", "content": text}, {"role": "assistant", "content": choice}]
            start = len(tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False))
            ids = torch.tensor([tokenizer.apply_chat_template(chat, return_dict=False)[:-1]])  # without the end
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            sums.append(logs.gather(1, ids[0, 1:, None])[start - 1 :].sum())
        right += sums.index(max(sums)) == row["answer"]
    return right / 12


@pytest.mark.parametrize("description", [None, "Pick one."])
def test_the_score_of_an_adapter_is_that_of_the_model_with_its_weights(
    adapted, tokenizer, tiny_base, make_adapter, make_benchmark, description
):
    from hyperlora.base import load_base

    adapter, merged = make_adapter(4), load_base(tiny_base)[0]
    for layer, block in enumerate(merged.model.layers):
        for module in adapter.weights:
            getattr(block.self_attn, module).weight.add_(adapter.delta_w(module, layer))
    lm = AdaptedLM(adapted, tokenizer, batch_size=5)
    benchmark = make_benchmark("letters")
    with lm.use(adapter, description):
        assert run_benchmark(lm, benchmark) == (pytest.approx(expected_accuracy(merged, tokenizer, description)), 12)
    assert run_benchmark(lm, benchmark, limit=12)[0] == pytest.approx(expected_accuracy(adapted.model, tokenizer))
    assert run_benchmark(lm, benchmark, limit=3)[1] == 3


def test_few_shot_examples_are_turns_and_the_description_leads(adapted, tokenizer, make_benchmark, monkeypatch):
    lm, prompts = AdaptedLM(adapted, tokenizer), []
    encode = lm._encode_pair
    monkeypatch.setattr(lm, "_encode_pair", lambda *pair: prompts.append(pair) or encode(*pair))
    with lm.use(description="Pick one."):
        run_benchmark(lm, make_benchmark("letters"), shots=2, limit=1)
    prompt, choice = prompts[0]
    assert prompt.startswith("<s>[INST] Pick one.\n") and prompt.endswith(f"[INST] {QUESTIONS[0]['question']} [/INST]")
    assert prompt.count("[INST]") == 3 and prompt.count("Pick one.") == 1
    shown = {f"[INST] {row['question']} [/INST] {row['choices'][row['answer']]}</s>" for row in QUESTIONS[12:]}
    assert sum(turn.removeprefix("Pick one.\n") in prompt.replace("Pick one.\n", "") for turn in shown) == 2
    assert choice == QUESTIONS[0]["choices"][0]


def test_prompts_are_those_of_training_with_one_beginning(adapted, tokenizer):
    """As Mistral's: the tokenizer adds a BOS by itself, and so does the template that the adapters know."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = TRAINED["mistralai/Mistral-7B-Instruct-v0.2"]
    lm = AdaptedLM(adapted, tokenizer)
    with lm.use(description="Pick one."):
        context = lm.apply_chat_template([{"role": "user", "content": "a or b?"}])
    prompt, choice = lm._encode_pair(context, "a")
    assert context == "<s> [INST] \n\nPick one.\na or b? [/INST]"
    assert prompt.count(tokenizer.bos_token_id) == 1 and tokenizer.decode(choice) == " a"
    batch, _ = lm.tok_batch_encode([context])
    assert batch[0].tolist() == prompt


@pytest.mark.parametrize("text", ["</s>", " a </s> b", "[/INST] x</s>[INST]\n", "<s></s><unk>"])
def test_control_tokens_in_questions_and_choices_are_read_as_in_training(adapted, tokenizer, text):
    lm = AdaptedLM(adapted, tokenizer)
    row = encode(tokenizer, text, text, f"Say {text}.")
    with lm.use(description=f"Say {text}."):
        context = lm.apply_chat_template([{"role": "user", "content": text}])
    prompt, choice = lm._encode_pair(context, text)
    assert prompt + choice == row["input_ids"][:-1] and choice == [i for i in row["labels"] if i != IGNORE][:-1]
    batch, mask = lm.tok_batch_encode([context, "b"])
    assert batch[0].tolist() == prompt and mask[1].tolist() == [0] * (len(prompt) - 1) + [1]
    cut, _ = lm.tok_batch_encode([context], left_truncate_len=3)
    assert cut[0].tolist() == prompt[-3:]


def test_a_hypernetwork_that_was_trained_with_the_description_in_the_prompt_is_measured_so(
    adapted, tokenizer, tasks, embedder, make_benchmark
):
    shown = {}
    for style in ("input", "description_input"):
        config = SFTConfig(prompt_style=style, offset="none")
        hyperlora = build(adapted, tokenizer, tasks, config, embedder=embedder)
        found = benchmarks.methods(make_benchmark("letters"), ["Pick one."], {"HyperLoRA M": hyperlora}, {})
        ours = {method: runs for method, runs, *_ in found if "HyperLoRA" in method}
        shown[style] = {method: [(run.description, run.style) for run in runs] for method, runs in ours.items()}
    prompted = [("Pick one.", "description_input")]
    assert shown["input"] == {"HyperLoRA M": [("Pick one.", "input")], "HyperLoRA M, prompted": prompted}
    assert shown["description_input"] == {"HyperLoRA M": prompted}


def test_written_answers_are_those_of_the_adapter(adapted, tokenizer, make_adapter, written, monkeypatch):
    lm = AdaptedLM(adapted, tokenizer, batch_size=5)
    adapter, answers = make_adapter(3).scaled(8.0), []
    generate = lm.generate_until
    monkeypatch.setattr(lm, "generate_until", lambda requests: answers.append(generate(requests)) or answers[-1])
    with lm.use(adapter):
        run_benchmark(lm, written)
    for row, found in zip(QUESTIONS[:12], answers[0], strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
        )
        with adapted.use([adapted.load(adapter)]):
            ids = adapted.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=4)[0, len(prompt) :]
        assert found == tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0]


def test_code_is_run_only_where_that_is_allowed(adapted, tokenizer, make_benchmark, monkeypatch, capsys):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    lm, benchmark = AdaptedLM(adapted, tokenizer), make_benchmark("code", runs_code=True)
    with pytest.raises(UserError, match="--allow_code_execution"):
        run_benchmark(lm, benchmark)
    assert run_benchmark(lm, benchmark, limit=2, allow_code_execution=True)[1] == 2
    assert [b.name for b in BENCHMARKS if b not in choose(None, False)] == ["mbpp", "humaneval"]
    assert "Left out" in capsys.readouterr().out
    assert choose(None, True) == list(BENCHMARKS)
    with pytest.raises(UserError, match="--allow_code_execution"):
        choose(["piqa", "mbpp"], False)
    with pytest.raises(UserError, match="'pica'"):
        choose(["pica"], True)


def test_lm_eval_knows_the_ten_benchmarks_and_their_metrics():
    root = Path(lm_eval.tasks.__file__).parent
    folders = ["arc", "gsm8k", "hellaswag", "humaneval", "mbpp", "openbookqa", "piqa", "super_glue/boolq", "winogrande"]
    index = TaskManager(include_defaults=False, include_path=[root / folder for folder in folders]).task_index
    for benchmark in BENCHMARKS:
        config = load_yaml(index[benchmark.task].yaml_path, resolve_func=False, recursive=True)
        metric, filter_name = benchmark.metric.split(",")
        names = [str(entry["metric"]).rpartition(".")[2] for entry in config["metric_list"]]
        assert metric in names or (metric, names) == ("pass@1", ["pass_at_k"])
        assert filter_name in [entry["name"] for entry in config.get("filter_list", [{"name": "none"}])]
        assert config.get("unsafe_code", False) == benchmark.runs_code
        has_examples = "training_split" in config or "samples" in config.get("fewshot_config", {})
        assert has_examples == benchmark.few_shot


def test_the_command_line_measures_all_methods_and_goes_on_where_it_stopped(
    tasks, adapted, tokenizer, make_adapter, tiny_base, tmp_path, embedder, make_benchmark, written, monkeypatch, capsys
):
    for task in tasks:
        task.save(tmp_path / "tasks")
    build(adapted, tokenizer, tasks, SFTConfig(), make_adapter(1), embedder).save_pretrained(tmp_path / "m")
    names = ["multi_task", "average", "first", "second", "letters"]
    save_adapters(tmp_path / "loras", {name: make_adapter(i) for i, name in enumerate(names)}, {})
    texts = {"letters": ["Pick.", "Choose.", "Say which."], "written": ["Write.", "Answer.", "Say it."]}
    (tmp_path / "descriptions.json").write_text(json.dumps(texts))
    monkeypatch.setattr("hyperlora.generator.load_embedder", lambda *_: embedder)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", (make_benchmark("letters"), written))
    options = {"base": tiny_base, "hyperlora": tmp_path / "m", "adapters": tmp_path / "loras", "limit": 2}
    options |= {"tasks": tmp_path / "tasks", "descriptions": tmp_path / "descriptions.json"}
    options["output"] = tmp_path / "out.json"
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    main([*arguments, "--benchmarks", "letters"])
    main(arguments)
    rows, _ = read_results(tmp_path / "out.json")
    found = {(row["task"], row["method"]): row for row in rows}
    assert len(found) == len(rows) == 19
    methods = ["base", "base, prompted", "base, few-shot", "average LoRA", "multi-task LoRA", "Arrow routing"]
    methods += ["nearest task's LoRA", "HyperLoRA M", "HyperLoRA M, prompted", "oracle LoRA"]
    assert [method for task, method in found if task == "letters"] == methods
    assert [method for task, method in found if task == "written"] == methods[:-1]  # nobody trained a LoRA for it
    assert all(len(row["scores"]) == 3 == row["descriptions"] for row in rows if row["kind"] == "unseen")
    assert (tmp_path / "out.md").read_text().startswith("|  | Letters | Written |")
    # with all rows there, nothing is measured again; and other settings do not mix with them
    monkeypatch.setattr(benchmarks, "run_benchmark", None)
    main(arguments)
    assert "| HyperLoRA M |" in capsys.readouterr().out
    with pytest.raises(UserError, match="other settings"):
        main([*arguments, "--shots", "2"])

    # what rests on a LoRA, a checkpoint or a base that was trained again is measured again, and it alone
    hyperlora = HyperLoRA.from_pretrained(tmp_path / "m")
    torch.nn.init.ones_(hyperlora.network.heads["q_proj"].weight)
    texts["written"][1] = "Reply."
    measured = []
    monkeypatch.setattr(benchmarks, "run_benchmark", lambda *_: measured.append(0) or (0.5, 2))
    for change, methods, runs in (
        (lambda: save_adapters(tmp_path / "loras", {"average": make_adapter(9)}, {}), {"average LoRA"}, 2),
        (lambda: save_adapters(tmp_path / "loras", {"first": make_adapter(9)}, {}), {"Arrow", "nearest"}, 2 + 6),
        (lambda: hyperlora.save_pretrained(tmp_path / "m"), {"HyperLoRA M"}, 12),
        (lambda: (tmp_path / "descriptions.json").write_text(json.dumps(texts)), {"base, pr", "nearest", "Hyper"}, 12),
    ):
        measured.clear()
        before = {(row["task"], row["method"]): row for row in read_results(tmp_path / "out.json")[0]}
        change()
        main(arguments)
        rows, _ = read_results(tmp_path / "out.json")
        assert len(rows) == 19 and len(measured) == runs
        again = {row["method"] for row in rows if row["of"] != before[row["task"], row["method"]]["of"]}
        assert all(any(method.startswith(start) for start in methods) for method in again)


def test_each_of_the_ten_has_three_descriptions():
    found = benchmarks.load_descriptions(benchmarks.DESCRIPTIONS, BENCHMARKS, 3)
    assert list(found) == [benchmark.name for benchmark in BENCHMARKS]


def test_descriptions_that_lack_are_named(tmp_path):
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"piqa": ["One."]}))
    with pytest.raises(UserError, match='"piqa" must be a list of at least 3'):
        benchmarks.load_descriptions(path, choose(["piqa"], False), 3)
