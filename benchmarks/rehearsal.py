"""A rehearsal at full size without the Hub: random files in the real formats, then everything that a visitor does.

python -m benchmarks.rehearsal make DIR   writes DIR/base, a Mistral-7B-Instruct-v0.2 of random weights (14.5 GB), and
                                          DIR/hyperlora, a random hypernetwork in the public text-to-lora format
python -m benchmarks.rehearsal run DIR    starts from these folders alone and prints what it took; with --app it starts
                                          the page instead, describes a task there and reads the answer's beginning
"""

import argparse
import json
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from shutil import disk_usage
from typing import Any, get_args

import torch
import yaml
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers.utils import logging

import hyperlora
from benchmarks.measure import TASKS, add_device, difference, held_mb, print_table, resident_mb, synchronize
from benchmarks.real_shapes import TARGETS
from hyperlora.base import Precision, precision
from hyperlora.embedder import MINILM
from hyperlora.errors import UserError
from hyperlora.export import export_zip
from hyperlora.files import writing
from hyperlora.hub import gigabytes
from hyperlora.lora import Adapter
from hyperlora.memory import BaseShape
from training.parts.options import run

MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
INDEX = "model.safetensors.index.json"
SHARD = 10**9  # bytes, all that is in memory at a time
VOCABULARY, RANK = 32000, 8
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('User and assistant must take turns, the user first.') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATS = len(TASKS)
# Between our forward and PEFT's: in float32 a part of the largest logit, with fewer bits of what the adapter changes:
# there the two round sums in another order, on a GPU PEFT alone has A and B in float32, and 8 bits round activations.
TOLERANCE, PART = 1e-4, 0.25


# ---- the base model ----


def base_shape(layers: int = 32, hidden: int = 4096) -> BaseShape:
    """Mistral-7B's, or with fewer layers or narrower."""
    if layers < 1 or hidden < 64 or hidden % 64:
        raise SystemExit("There must be a layer at least, and a hidden size that is a multiple of 64.")
    return BaseShape(layers, hidden, hidden * 7 // 2, 32, 8, hidden // 32, VOCABULARY)


def write_base(folder: Path, shape: BaseShape, shard: int = SHARD, device: str = "cpu") -> None:
    """A random base in bfloat16: safetensors in shards of about `shard` bytes, config and tokenizer.

    device: where the random numbers are drawn; on a GPU in seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    if shape.head_dim * shape.heads != shape.hidden:
        config["head_dim"] = shape.head_dim
    _write_json(folder / "config.json", config)
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.36.0"}
    _write_json(folder / "generation_config.json", generation)
    write_tokenizer(folder)

    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, dims in tensor_shapes(shape):
        if files[-1] and size + 2 * torch.Size(dims).numel() > shard:
            files.append([])
            size = 0
        files[-1].append((name, dims))
        size += 2 * torch.Size(dims).numel()
    random, places = torch.Generator(device).manual_seed(0), {}
    for i, tensors in enumerate(files, 1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        weights = {name: _weight(dims, random) for name, dims in tensors}
        save_file(weights, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, file)
        del weights  # before the next ones are made
    total = 2 * sum(torch.Size(dims).numel() for _, dims in tensor_shapes(shape))
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def tensor_shapes(shape: BaseShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and size of each tensor of the base."""
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        path = f"model.layers.{layer}"
        for name, (d_in, d_out) in shape.linears.items():
            part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            yield f"{path}.{part}.{name}.weight", (d_out, d_in)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{path}.{norm}.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, shape.hidden)


def _weight(size: tuple[int, ...], random: torch.Generator) -> Tensor:
    weight = torch.empty(size, dtype=torch.bfloat16, device=random.device)
    return (weight.fill_(1.0) if len(size) == 1 else weight.normal_(std=0.02, generator=random)).cpu()


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of Llama's kind: byte-pair merges over text whose spaces are "▁", and bytes for all else.

    Half of its merges are learnt from Python's own documentation, the rest are made up.
    """
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    learnt.train_from_iterator(" ".join(topics.values()).split(), trainer)
    vocabulary, merges = learnt.get_vocab(), json.loads(learnt.to_str())["model"]["merges"]
    merges = [tuple(merge) for merge in merges]
    words = (word for word in sorted(vocabulary, key=vocabulary.get) if word.startswith("▁"))
    longer = ((word, letter) for word in words for letter in "etaoinsrhldcumfpgwybvk")
    while len(vocabulary) < VOCABULARY:
        if (word := "".join(merge := next(longer))) not in vocabulary:
            vocabulary[word] = len(vocabulary)
            merges.append(merge)

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": 10**30,
        "pad_token": None,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


# ---- the hypernetwork ----


def write_checkpoint(
    folder: Path, shape: BaseShape, embedder: str = MINILM, latent: int = 128, head: int = 512
) -> None:
    """A random hypernetwork with head L as the public implementation saves it: SFT, no offset, a bias in each head.

    `embedder`: a sentence encoder, or "" for the base model's last token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}

    def linear(name: str, d_in: int, d_out: int) -> None:
        for side, size in (("weight", (d_out, d_in)), ("bias", (d_out,))):
            state[f"{name}.{side}"] = torch.empty(size).uniform_(-(d_in**-0.5), d_in**-0.5, generator=random)

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(size), torch.zeros(size)

    def embedding(name: str, count: int, size: int) -> None:
        state[f"{name}.0.weight"] = torch.randn(count, size, generator=random)
        norm(f"{name}.1", size)

    targets = shape.targets(TARGETS)
    for buffer, value in (("AB_offset", 0.0), ("mean_recon_target", 0.0), ("std_recon_target", 1.0)):
        for module, (d_in, d_out) in targets.items():
            state[f"{buffer}.A.{module}"] = torch.full((shape.layers, RANK, d_in), value)
            state[f"{buffer}.B.{module}"] = torch.full((shape.layers, d_out, RANK), value)
    linear("task_encoder.mlp.0", shape.hidden if not embedder else 384, latent // 2)
    norm("task_encoder.mlp.1", latent // 2)
    embedding("layer_depth_encoder", shape.layers, latent // 4)
    embedding("layer_type_encoder", len(targets), latent // 4)
    linear("mixer.1", latent, 4 * latent)
    linear("mixer.4", 4 * latent, latent)
    for name, size in (("mlp1.mlp", latent), ("mlp2.mlp", latent), ("mlp3", head)):
        norm(f"{name}.0", latent)
        linear(f"{name}.1", latent, 4 * latent)
        linear(f"{name}.4", 4 * latent, size)
    for module, (d_in, d_out) in targets.items():
        linear(f"heads.{module}", head, RANK * (d_in + d_out))
        for side in ("weight", "bias"):  # entries of A and B of a trained adapter's size
            state[f"heads.{module}.{side}"] *= 0.2
    torch.save(state, folder / "hypermod.pt")

    arguments = {
        "autoreg_gen": False,
        "delta_w_scaling": 10000,
        "emb_model": embedder,
        "encoder_type": "linear",
        "exp_setup": "hyper_lora",
        "factorized": False,
        "head_in_size": head,
        "head_use_bias": True,
        "hypernet_latent_size": latent,
        "learnable_AB_offset": False,
        "learnable_pos_emb": False,
        "model_dir": MODEL,
        "mt_lora_path": None,
        "pred_z_score": False,
        "shared_AB_head": False,
        "target_modules": list(targets),
        "train_ds_names": ["task_0", "task_1"],
        "training_task": "sft",
        "use_one_hot_task_emb": False,
    }
    (folder / "args.yaml").write_text(yaml.safe_dump(arguments), encoding="utf-8")
    LoraConfig(
        r=RANK, lora_alpha=16, lora_dropout=0.05, use_rslora=True, target_modules=TARGETS, task_type="CAUSAL_LM"
    ).save_pretrained(folder)


# ---- the rehearsal ----


@contextmanager
def counted(pipe: hyperlora.Pipeline) -> Iterator[list[float]]:
    """Inside, the list gets the time of each forward pass of the base: one a token of the answers."""
    times: list[float] = []
    handle = pipe.adapted.model.register_forward_pre_hook(lambda *_: times.append(time.perf_counter()))
    try:
        yield times
    finally:
        handle.remove()


def seconds(run: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def logits(pipe: hyperlora.Pipeline, ids: list[int], adapter: Adapter | None) -> Tensor:
    """[tokens, vocabulary] float32 on the CPU."""
    slot = None if adapter is None else pipe.adapted.load(adapter)
    with torch.no_grad(), pipe.adapted.use([slot]):
        found = pipe.adapted.model(torch.tensor([ids], device=pipe.adapted.model.device)).logits[0].float().cpu()
    if slot is not None:
        pipe.adapted.unload(slot)
    return found


def rehearse(folder: Path, device: str, name: Precision, tokens: int) -> list[list[str]]:
    """Do what a visitor does; rows of what and how much. Leaves with a sentence where PEFT's logits are others."""
    rows: list[list[str]] = []

    def note(what: str, value: float, unit: str) -> None:
        rows.append([what, f"{value:,.{0 if value >= 100 else 2}f} {unit}"])

    def note_memory(when: str) -> None:
        note(f"memory {when}", resident_mb(), "MB")
        note(f"memory {when}, peak so far", resident_mb(field="VmHWM"), "MB")
        if device != "cpu":
            note(f"GPU memory {when}", held_mb(device), "MB")
            note(f"GPU memory {when}, peak so far", held_mb(device, peak=True), "MB")

    logging.disable_progress_bar()
    start = time.perf_counter()
    options = {key: value for key, value in precision(name).items() if value is not None}
    pipe = hyperlora.pipeline(None, base=folder / "base", hyperlora=folder / "hyperlora", device=device, **options)
    synchronize()
    note("load", time.perf_counter() - start, "s")
    note_memory("after loading")
    weights = sum(tensor.nbytes for tensor in pipe.adapted.model.parameters())
    note("the base's weights", weights / 1e6, "MB")

    messages, call = list(TASKS.values()), pipe.engine.call
    adapters = [pipe.adapt("Warm up.")]

    def generate(description: str) -> None:
        adapters.append(pipe.adapt(description))

        def load() -> None:
            slot = pipe.adapted.load(adapters[-1])
            with pipe.adapted.use([slot]):
                pass
            pipe.adapted.unload(slot)

        call(load)

    ready = [seconds(lambda text=text: generate(text)) for text in TASKS]
    note("from Generate to ready", 1000 * statistics.median(ready), "ms")

    def first_piece(message: str, adapter: Adapter) -> None:
        for _ in pipe.chat(message, adapter, stream=True, max_new_tokens=8):
            return

    first = [seconds(lambda i=i: first_piece(messages[i], adapters[1 + i])) for i in range(3)]
    note("first piece of the answer", 1000 * statistics.median(first), "ms")
    for chats in (1, CHATS):
        with counted(pipe) as times:
            taken = seconds(lambda n=chats: pipe.chat_batch(messages[:n], adapters[1 : n + 1], max_new_tokens=tokens))
        what = f"{chats} chats with {chats} adapters" if chats > 1 else "one chat with an adapter"
        note(f"{what}, prompts included", chats * len(times) / taken, "tokens/s")
        if len(times) > 2:  # the first step of a size loads its kernels
            usual = statistics.median(after - before for before, after in pairwise(times[1:]))
            note(f"{what}, decoding", chats / usual, "tokens/s")

    adapter = adapters[1]
    ids = pipe.tokenizer(messages[0]).input_ids
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "adapter.zip"
        note("export as a zip", seconds(lambda: export_zip(adapter, path)), "s")
        note("the zip", path.stat().st_size / 1e6, "MB")
        bare, ours = (call(lambda chosen=chosen: logits(pipe, ids, chosen)) for chosen in (None, adapter))
        with zipfile.ZipFile(path) as archive:
            archive.extractall(Path(temporary) / "adapter")
        # PEFT wraps the linears of the base that is there; outside `use` ours add nothing.
        PeftModel.from_pretrained(pipe.adapted.model, str(Path(temporary) / "adapter"))
        theirs = call(lambda: logits(pipe, ids, None))
    error, effect = difference(ours, theirs), difference(bare, theirs)
    rows.append(["logits, ours against PEFT's, of the largest", f"{error:.1e}"])
    rows.append(["logits, without the adapter against with it", f"{effect:.1e}"])
    note_memory("at the end")
    pipe.close()
    if not error < (most := TOLERANCE if name == "float32" else PART * effect):
        print_table(["rehearsal", name], rows)
        raise SystemExit(f"PEFT's logits differ from ours by {error:.1e} of the largest; {most:.1e} may be.")
    return rows


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write the folders")
    make.add_argument("--layers", type=int, default=32, help="default: 32")
    make.add_argument("--hidden", type=int, default=4096, help="width; the other sizes follow (default: 4096)")
    make.add_argument(
        "--last_token", action="store_true", help="the base model reads descriptions, not all-MiniLM-L6-v2"
    )
    make.add_argument("--checkpoint-only", action="store_true", help="the hypernetwork alone, no base model")
    measure = commands.add_parser("run", help="start from the folders and measure")
    measure.add_argument("--precision", choices=get_args(Precision), default="bfloat16", help="the base's")
    measure.add_argument("--tokens", type=int, default=32, help="of each answer (default: 32)")
    measure.add_argument("--app", action="store_true", help="start the page and use it over HTTP instead")
    for command in (make, measure):
        add_device(command)  # on which random weights are drawn, or everything runs
        command.add_argument("folder", type=Path, metavar="DIR")
    args = options.parse_args(argv)
    if args.command == "make":
        shape = base_shape(args.layers, args.hidden)
        with writing(args.folder, "choose another folder, or free some space"):
            args.folder.mkdir(parents=True, exist_ok=True)
            need, free = 0 if args.checkpoint_only else 2 * shape.parameters, disk_usage(args.folder).free
            if need > free:
                raise UserError(f"The base takes {gigabytes(need)} and {args.folder} has {gigabytes(free)} free.")
            write_checkpoint(args.folder / "hyperlora", shape, "" if args.last_token else MINILM)
            if not args.checkpoint_only:
                write_base(args.folder / "base", shape, device=args.device)
    elif args.app:
        held = precision(args.precision)
        command = {"base": args.folder / "base", "hyperlora": args.folder / "hyperlora", "device": args.device}
        command |= {"dtype": str(held["dtype"]).removeprefix("torch."), "quantize": held["quantize"]}
        from benchmarks.first_token import start_page  # only the page needs gradio

        taken, mb, answer = start_page([f"--{name}={value}" for name, value in command.items() if value is not None])
        rows = [["start, until it has made an adapter", f"{taken:,.1f} s"], ["resident memory", f"{mb:,.0f} MB"]]
        print_table(["`app.py`", ""], [*rows, ["the answer begins with", repr(answer)]])
    else:
        print_table(["rehearsal", args.precision], rehearse(args.folder, args.device, args.precision, args.tokens))


if __name__ == "__main__":
    run(main)
