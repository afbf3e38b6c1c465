"""What many tests share: a tiny base model on disk, small configs, random adapters."""

import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from hyperlora.config import HyperLoRAConfig
from hyperlora.embedder import SentenceEmbedder
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter

TARGETS = {"q_proj": (64, 64), "v_proj": (64, 32)}  # the tiny base's
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
CHAT_TEMPLATE = (  # the form of Mistral-Instruct: <s>[INST] text [/INST] answer</s>
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported.') }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Mistral, one token a character; q_proj is 64 -> 64, v_proj 64 -> 32."""
    folder = tmp_path_factory.mktemp("tiny_base")
    characters = [character for character in string.printable if character.isprintable()]
    vocabulary = {token: i for i, token in enumerate(SPECIAL + characters)}
    characterwise = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    characterwise.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characterwise,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["[INST]", "[/INST]"],
        model_max_length=256,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(
            MistralConfig(
                vocab_size=len(vocabulary),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                sliding_window=None,
                bos_token_id=vocabulary["<s>"],
                eos_token_id=vocabulary["</s>"],
                pad_token_id=vocabulary["</s>"],
            )
        )
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_base: Path) -> MistralForCausalLM:
    """The model in `tiny_base`, in float32 and evaluation mode; a new one for every test."""
    return MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """make_adapter(seed, rank=8, **fields): a random adapter of the tiny base whose effect is easily seen."""

    def make(seed: int, rank: int = 8, **fields) -> Adapter:
        random = torch.Generator().manual_seed(seed)
        weights = {
            module: (
                torch.randn(2, rank, d_in, generator=random) / 8,
                torch.randn(2, d_out, rank, generator=random) / 8,
            )
            for module, (d_in, d_out) in TARGETS.items()
        }
        return Adapter(weights, **{"alpha": 16.0, "use_rslora": True} | fields)

    return make


@pytest.fixture
def make_config() -> Callable[..., HyperLoRAConfig]:
    """make_config(**fields): a hypernetwork for the tiny base, head M, task inputs of 16."""

    def make(**fields) -> HyperLoRAConfig:
        return HyperLoRAConfig(**{"head": "M", "target_modules": dict(TARGETS), "num_layers": 2, "d_emb": 16} | fields)

    return make


@pytest.fixture(scope="session")
def minilm() -> SentenceEmbedder:
    """all-MiniLM-L6-v2 from its package, loaded once."""
    return SentenceEmbedder()


@pytest.fixture(scope="session")
def tiny_hyperlora(minilm: SentenceEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hypernetwork for the tiny base: head M, random weights whose adapters are easily told apart."""
    descriptions = ["Reverse the order of the words.", "Add the two numbers.", "Write the word in capital letters."]
    config = HyperLoRAConfig(
        head="M", target_modules=dict(TARGETS), num_layers=2, d_emb=384, base_model="tiny-base", notice_threshold=0.5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hyperlora = HyperLoRA(config)
        for head in hyperlora.network.heads.values():
            torch.nn.init.normal_(head.weight, std=0.1)
    hyperlora.set_descriptions(descriptions, minilm.embed(descriptions))
    folder = tmp_path_factory.mktemp("tiny_hyperlora")
    hyperlora.save_pretrained(folder)
    return folder
