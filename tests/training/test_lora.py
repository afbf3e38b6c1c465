import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from hyperlora.errors import UserError
from tests.training.test_sft import ROOT
from training.lora import LoRAConfig, Options, _rate, main, train_loras
from training.parts.adapters import average, load_adapters, read_index, save_adapters
from training.parts.batches import collate, encode_task
from training.parts.library import pack
from training.parts.loss import mean_loss
from training.parts.options import parse

QUICK = LoRAConfig(  # a random base needs large steps, and its small embeddings drown in NEFTune's noise
    batch_size=8, gradient_accumulation_steps=1, max_steps=100, learning_rate=5e-2, neftune_alpha=0, log_every=50
)
NOISELESS = LoRAConfig(
    batch_size=4, gradient_accumulation_steps=2, max_steps=6, learning_rate=1e-2, lora_dropout=0, neftune_alpha=0
)


def test_a_task_specific_lora_lowers_the_loss_and_leaves_the_base_alone(adapted, tokenizer, tasks):
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    batch = collate(encode_task(tokenizer, tasks[0], split="test"), tokenizer.pad_token_id)
    with torch.no_grad():
        base_loss = mean_loss(adapted.model, batch["input_ids"], batch["labels"])
    adapter = train_loras(adapted, tokenizer, {"first": tasks[:1]}, QUICK)["first"]
    slot = adapted.load(adapter)
    with torch.no_grad(), adapted.use([slot] * len(batch["labels"])):
        loss = mean_loss(adapted.model, batch["input_ids"], batch["labels"])
    assert loss < base_loss - 0.3  # the random base turns its last layer into logits of about 1 at most
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.model.state_dict().items())
    assert not adapted.model.training and adapted.lora_dropout == 0


def test_loras_trained_together_are_those_trained_alone(adapted, tokenizer, tasks):
    groups = {"first": tasks[:1], "second": tasks[1:2], "multi_task": tasks}
    together = train_loras(adapted, tokenizer, groups, NOISELESS)
    for name, group in groups.items():
        alone = train_loras(adapted, tokenizer, {name: group}, NOISELESS)[name]
        for module in alone.weights:
            for a, b in zip(alone.weights[module], together[name].weights[module], strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(
        together["first"].weights["q_proj"][1], together["second"].weights["q_proj"][1], atol=1e-3
    )


def test_each_lora_gets_its_own_epochs(adapted, tokenizer, tasks):
    """A task of few examples gets no more passes over them because a larger one is trained beside it."""
    few = [replace(tasks[1], train=tasks[1].train[:8])]
    config = replace(NOISELESS, max_steps=0, epochs=2)
    together = train_loras(adapted, tokenizer, {"first": tasks[:1], "few": few}, config)["few"]
    alone = train_loras(adapted, tokenizer, {"few": few}, config)["few"]
    for module in alone.weights:
        for a, b in zip(alone.weights[module], together.weights[module], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.0), (7, 0.1), (20, 0.3), (5, 1.0)])
def test_the_learning_rate_is_that_of_transformers(steps, fraction):
    [weight] = torch.nn.ParameterList([torch.zeros(1)])
    schedule = get_linear_schedule_with_warmup(torch.optim.SGD([weight], lr=1.0), round(fraction * steps), steps)
    for step in range(1, steps + 4):
        assert _rate(step, steps, fraction) == pytest.approx(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()


def test_a_loss_that_is_no_number_is_named(adapted, tokenizer, tasks):
    with pytest.raises(UserError, match="The loss of 'first' is no finite number any more at step"):
        train_loras(adapted, tokenizer, {"first": tasks[:1]}, replace(QUICK, learning_rate=3e38, warmup_fraction=0))


def test_the_average_lora_is_the_elementwise_mean(make_adapter):
    a, b = make_adapter(1), make_adapter(2)
    mean = average([a, b])
    for module in a.weights:
        for side in (0, 1):
            torch.testing.assert_close(
                mean.weights[module][side], (a.weights[module][side] + b.weights[module][side]) / 2
            )


def test_a_saved_lora_loads_in_peft_with_the_trained_loss(adapted, tokenizer, tasks, tiny_base, tmp_path):
    adapters = train_loras(adapted, tokenizer, {"second": tasks[1:2]}, QUICK)
    save_adapters(tmp_path, adapters, {"second": tasks[1:2]})
    batch = collate(encode_task(tokenizer, tasks[1]), tokenizer.pad_token_id)
    with torch.no_grad(), adapted.use([adapted.load(load_adapters(tmp_path)["second"])] * 30):
        ours = mean_loss(adapted.model, batch["input_ids"], batch["labels"])
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "second").eval()
    with torch.no_grad():
        theirs = peft(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '"first"',
        '{"../elsewhere": ["first"]}',
        '{"..": ["first"]}',
        '{"a/b": ["first"]}',
        '{"/tmp/first": ["first"]}',
        '{"": ["first"]}',
        '{"\\ud83d": ["first"]}',
        '{"first": "first"}',
        '{"first": [1]}',
        '{"first": null}',
    ],
)
def test_an_index_that_is_none_is_named(content, make_adapter, tmp_path):
    """Neither read nor written over; `training.parts.library` reads it the same way."""
    save_adapters(tmp_path, {"first": make_adapter(1)}, {})
    (tmp_path / "index.json").write_text(content)
    for use in (
        lambda: load_adapters(tmp_path),
        lambda: save_adapters(tmp_path, {"second": make_adapter(2)}, {}),
        lambda: pack(tmp_path, tmp_path / "library.safetensors"),
    ):
        with pytest.raises(UserError, match=r"index\.json") as error:
            use()
        assert "\n" not in str(error.value)
    assert (tmp_path / "index.json").read_text() == content and not (tmp_path / "second").exists()


def test_an_index_is_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr("training.parts.adapters.MAX_INDEX_BYTES", 10)
    (tmp_path / "index.json").write_text('{"first": ["first"]}')
    with pytest.raises(UserError, match=r"index\.json is larger than 10 bytes"):
        read_index(tmp_path)


def test_a_folder_without_an_index_has_no_loras_yet(tmp_path):
    assert read_index(tmp_path) == {}
    with pytest.raises(UserError, match=r"holds no index\.json: train its LoRAs first"):
        load_adapters(tmp_path)


def test_the_command_line_writes_an_adapter_a_task_and_their_average(tasks, tiny_base, tmp_path):
    for task in tasks:
        task.save(tmp_path / "tasks")
    (tmp_path / "quick.yaml").write_text("max_steps: 2\nrank: 4\nlearning_rate: 1.0e-3\n")
    folders = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{tiny_base}", "--output", f"{tmp_path / 'out'}"]
    main([*folders, "--config", f"{tmp_path / 'quick.yaml'}", "--rank", "2"])
    adapters = load_adapters(tmp_path / "out")
    assert sorted(adapters) == ["average", "both", "first", "second"]
    assert {adapter.rank for adapter in adapters.values()} == {2}


def test_a_run_that_was_stopped_goes_on_with_the_loras_that_are_missing(tasks, tiny_base, tmp_path):
    for task in tasks:
        task.save(tmp_path / "tasks")
    out = tmp_path / "out"
    arguments = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{tiny_base}", "--output", f"{out}", "--max_steps", "2"]
    main([*arguments, "--loras_at_once", "1"])
    first = (out / "first" / "adapter_model.safetensors").read_bytes()
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({"first": index["first"]}))  # stopped after the first
    with pytest.raises(UserError, match="'first' already: resume"):
        main(arguments)
    elsewhere = os.path.relpath(tiny_base)  # the same folder by another name
    main([*arguments, "--resume", "--loras_at_once", "7", "--base", elsewhere])
    assert (out / "first" / "adapter_model.safetensors").read_bytes() == first
    assert json.loads((out / "index.json").read_text()) == index
    own = [load_adapters(out)[task.name] for task in tasks]
    torch.testing.assert_close(load_adapters(out)["average"].weights, average(own).weights)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--max_steps", "3"], "was trained with max_steps 2, not 3: resume with the same, or take another"),
        (["--rank", "4"], "rank 8, not 4"),
        (["--learning_rate", "0.1"], r"learning_rate 8e-05, not 0\.1"),
        (["--seed", "1"], "seed 0, not 1"),
        (["--prompt_style", "description_input"], "prompt_style 'input', not 'description_input'"),
        (["--target_modules", "q_proj"], "target modules 'q_proj, v_proj', not 'q_proj'"),
    ],
)
def test_loras_of_other_settings_are_not_mixed(tasks, tiny_base, tmp_path, more, sentence):
    tasks[0].save(tmp_path / "tasks")
    folders = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{tiny_base}", "--output", f"{tmp_path / 'out'}"]
    main([*folders, "--max_steps", "2"])
    tasks[1].save(tmp_path / "tasks")
    with pytest.raises(UserError, match=sentence):
        main([*folders, "--max_steps", "2", "--resume", *more])
    (tmp_path / "tasks" / "second.json").unlink()  # also where none is left to train
    with pytest.raises(UserError, match=sentence):
        main([*folders, "--max_steps", "2", "--resume", *more])
    assert list(load_adapters(tmp_path / "out")) == ["first", "average"]


def test_loras_of_other_examples_or_another_base_are_not_mixed(tasks, tiny_base, tmp_path):
    tasks[0].save(tmp_path / "tasks")
    base = shutil.copytree(tiny_base, tmp_path / "base")
    line = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{base}", "--output", f"{tmp_path / 'out'}"]
    line += ["--max_steps", "2"]
    main(line)
    tasks[1].save(tmp_path / "tasks")
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))  # trained again
    with pytest.raises(UserError, match="content of the base"):
        main([*line, "--resume"])
    (base / "model.safetensors").write_bytes(weights)
    replace(tasks[0], train=tasks[0].train[1:]).save(tmp_path / "tasks")
    with pytest.raises(UserError, match="content of the tasks"):
        main([*line, "--resume"])
    replace(tasks[0], descriptions=["Said in other words."]).save(tmp_path / "tasks")  # which no prompt holds
    main([*line, "--resume"])
    assert list(load_adapters(tmp_path / "out")) == ["first", "average", "second"]


def test_loras_from_elsewhere_are_known_by_their_form(tasks, tiny_base, make_adapter, tmp_path):
    tasks[0].save(tmp_path / "tasks")
    tasks[1].save(tmp_path / "tasks")
    save_adapters(tmp_path / "out", {"first": make_adapter(1)}, {"first": tasks[:1]})
    line = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{tiny_base}", "--output", f"{tmp_path / 'out'}"]
    with pytest.raises(UserError, match="first is of another base, alpha, rank, prompt_style or target"):
        main([*line, "--max_steps", "2", "--resume", "--rank", "4"])
    main([*line, "--max_steps", "2", "--resume"])
    assert list(load_adapters(tmp_path / "out")) == ["first", "second", "average"]


def test_a_lora_is_trained_without_the_rows_that_do_not_fit(adapted, tokenizer, tasks, capsys):
    config = LoRAConfig(max_steps=2)
    long = replace(tasks[0], train=[*tasks[0].train, {"input": "x" * 5000, "output": "y"}])
    assert train_loras(adapted, tokenizer, {"first": [long]}, config)["first"].rank == 8
    assert "Left out 1 of 31 examples, which are longer than 256 tokens." in capsys.readouterr().out


def test_held_out_tasks_own_loras_leave_the_average_alone(tasks, tiny_base, tmp_path, capsys):
    for folder, some in (("trained", tasks[:2]), ("held_out", tasks[2:])):
        for task in some:
            task.save(tmp_path / folder)
        main(
            ["--tasks", f"{tmp_path / folder}", "--base", f"{tiny_base}", "--output", f"{tmp_path}", "--max_steps", "2"]
        )
    assert "The average in" in capsys.readouterr().out
    found = load_adapters(tmp_path)
    own = [found[task.name] for task in tasks[:2]]
    torch.testing.assert_close(found["average"].weights, average(own).weights)


def test_an_output_that_cannot_be_written_is_said_before_anything_is_trained(tasks, tiny_base, tmp_path, monkeypatch):
    tasks[0].save(tmp_path / "tasks")
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr("training.lora.load_base", None)  # would be called to load the base
    folders = ["--tasks", f"{tmp_path / 'tasks'}", "--base", f"{tiny_base}", "--output", f"{tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"out could not be written \(File exists\): choose another output folder\."):
        main(folders)


def test_a_full_disk_leaves_no_half_written_lora(make_adapter, tasks, tmp_path, monkeypatch):
    """The disk is full when a LoRA's second file is written."""
    save_adapters(tmp_path, {"first": make_adapter(1)}, {"first": tasks[:1]})
    written, fsync = [], os.fsync

    def full(file: int) -> None:
        written.append(file)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\): free some space"):
        save_adapters(tmp_path, {"second": make_adapter(2)}, {"second": tasks[1:2]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "index.json"]
    assert list(load_adapters(tmp_path)) == ["first"]


def test_gradient_checkpointing_trains_the_same_lora(adapted, tokenizer, tasks):
    plain = train_loras(adapted, tokenizer, {"both": tasks}, NOISELESS)["both"]
    again = train_loras(adapted, tokenizer, {"both": tasks}, replace(NOISELESS, gradient_checkpointing=True))["both"]
    torch.testing.assert_close(again.weights, plain.weights, atol=1e-5, rtol=1e-3)
    assert not adapted.model.is_activation_checkpointing


def test_an_option_is_not_known_by_its_beginning(tmp_path, capsys):
    (tmp_path / "quick.json").write_text('{"max_steps": 1}')
    with pytest.raises(SystemExit):
        main(["--tasks", "x", "--base", "x", "--output", "x", "--conf", f"{tmp_path / 'quick.json'}"])
    assert "unrecognized arguments: --conf" in capsys.readouterr().err


def test_the_shipped_settings_are_the_papers():
    """All but what a base of 7B needs are the defaults."""
    config = ROOT / "training" / "configs" / "lora-mistral-7b.yaml"
    options = parse(Options, ["--config", str(config), "--tasks", "T", "--output", "O"])
    usual = parse(Options, ["--base", options.base, "--tasks", "T", "--output", "O"])
    assert options == replace(usual, base_dtype="bfloat16", device="cuda", bf16=True, loras_at_once=1)


def test_an_unknown_option_in_the_file_is_named(tmp_path):
    (tmp_path / "typo.json").write_text('{"learning_rat": 1}')
    try:
        main(["--tasks", "x", "--base", "x", "--output", "x", "--config", f"{tmp_path / 'typo.json'}"])
    except UserError as error:
        assert "learning_rat" in str(error)
    else:
        raise AssertionError("the typo was accepted")
