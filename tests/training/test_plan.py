import pytest
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig

from hyperlora.errors import UserError
from hyperlora.memory import GB, BaseShape
from tests.gguf_files import SIZES, write_gguf
from tests.training.test_sft import ROOT
from training.plan import GPUS, Options, base_shape, main, stages


@pytest.mark.parametrize(
    ("config", "stage", "gpu", "processes"),
    [
        ("lora-mistral-7b", "a LoRA a task", "A100 80", 1),
        ("sft-mistral-7b", "SFT", "A100 80", 1),
        ("sft-mistral-7b-4bit-ddp", "SFT", "L4", 8),
        ("sft-mistral-7b-fsdp", "SFT", "L4", 8),
    ],
)
def test_the_shipped_settings_fit_the_gpus_that_they_name(config, stage, gpu, processes):
    """With rows of up to 1,024 tokens."""
    values = yaml.safe_load((ROOT / "training" / "configs" / f"{config}.yaml").read_text())
    if stage == "a LoRA a task":
        values["lora_batch_size"] = values.pop("batch_size")
    known = {key: value for key, value in values.items() if key in Options.__dataclass_fields__ and key != "base"}
    options = Options(**known, processes=processes, longest=1024)
    assert stages(options)[stage].bytes < GPUS[gpu].memory * GB


def test_the_plan_is_a_table_of_stages_and_gpus(capsys):
    main(["--batch_size", "16", "--longest", "2048"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| stage | memory | RTX 3090 |")
    sft = next(line for line in lines if line.startswith("| SFT"))
    assert "too small" in sft
    main(["--base_dtype", "4bit", "--gradient_checkpointing"])
    sft = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| SFT"))
    assert "too small" not in sft and sft.endswith(" h |")


def test_a_gguf_file_is_planned_for_from_its_header(capsys, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, head_dim=16)))
    main(["--base", str(file)])
    assert "| SFT" in capsys.readouterr().out
    assert base_shape(str(file)) == BaseShape(2, 64, 96, 4, 2, 16, SIZES["vocab_size"])


def test_more_devices_take_less_time_and_a_split_base_less_memory():
    one, eight = (stages(Options(processes=n, shard_base=n > 1))["SFT"] for n in (1, 8))
    assert eight.hours(GPUS["H100"], 0.4) == pytest.approx(one.hours(GPUS["H100"], 0.4) / 8)
    assert eight.parts["base"] < one.parts["base"] / 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--base", "nowhere"], "There is no base 'nowhere'"),
        (["--target_modules", "q_proj,x"], "has no x in its layers"),
        (["--shard_base", "--base_dtype", "4bit"], "is held in float32 or bfloat16"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        main(arguments)
