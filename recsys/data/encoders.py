"""Hugging Face encoders of text and images; weights come from safetensors only."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from recsys.data.content import CONTENT, facts_of, locate, mean_of, normalized, texts_of
from recsys.data.read import read_bytes
from recsys.data.sequences import ITEMS

FORMATS = ("JPEG", "PNG", "WEBP")  # no format that runs another program
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class MeanState(nn.Module):
    """Tokens to the mean of their states in a text model, of length 1."""

    def __init__(self, model: PreTrainedModel, padding: int):
        super().__init__()
        self.model, self.padding = model, padding

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Returns features_NF."""
        mask_NT = tokens_NT != self.padding
        states_NTF = self.model(tokens_NT, attention_mask=mask_NT.long()).last_hidden_state
        # A sum: how many tokens there were is lost in the length anyway.
        return normalize((states_NTF * mask_NT[..., None]).sum(dim=1), dim=-1)


class Tokenizer:
    """Texts to tokens_NT, cut to the most that is read and padded to the longest."""

    def __init__(self, directory: Path, max_tokens: int):
        self.tokenizer = _load(AutoTokenizer, directory)
        self.padding: int = self.tokenizer.pad_token_id
        self.max_tokens = min(max_tokens, self.tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )["input_ids"]

    def save(self, directory: Path) -> None:
        """Writes the files that it is loaded from."""
        self.tokenizer.save_pretrained(directory)


class TextEncoder:
    """Texts to their features by a `MeanState`."""

    def __init__(self, directory: Path, max_tokens: int):
        model, self.tokens = _load_model(directory), Tokenizer(directory, max_tokens)
        self.mean_state = MeanState(model, self.tokens.padding)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return normalized(self.mean_state(self.tokens(texts)).numpy())

    def save(self, directory: Path) -> None:
        """Writes the encoder, its weights as they are now, as a directory that `locate` takes."""
        self.mean_state.model.save_pretrained(directory)
        self.tokens.save(directory)


class ItemTexts(NamedTuple):
    """The texts of a dataset's items, and what its features of them come from."""

    encoder: TextEncoder
    tokens_VT: Tensor
    mean_F: Tensor
    """Mean of the features, which `load_content` subtracts."""


def load_texts(dataset: Path) -> ItemTexts:
    """Returns the texts behind a dataset's features of text.

    Raises:
        ValueError: the dataset has no such features, or the encoder is no longer where it was.
    """
    facts = facts_of(dataset, "text")
    encoder = TextEncoder(locate(facts["encoder"], "text"), facts["max_tokens"])
    texts_V = texts_of(pq.read_table(dataset / ITEMS), facts["columns"])
    rows = [row for row, text in enumerate(texts_V) if text is not None]
    found_NT = encoder.tokens([text for text in texts_V if text is not None])
    tokens_VT = found_NT.new_full((len(texts_V), found_NT.shape[1]), encoder.mean_state.padding)
    tokens_VT[rows] = found_NT
    mean_F = mean_of(np.load(dataset / CONTENT / "text.npy"))
    return ItemTexts(encoder, tokens_VT, torch.from_numpy(mean_F))


class ImageEncoder:
    """Images to the mean of their patches' states, of length 1; zeros for what is no image."""

    def __init__(self, directory: Path):
        self.model, self.processor = _load_model(directory), _load(AutoImageProcessor, directory)

    @torch.inference_mode()
    def __call__(self, images: Sequence[bytes | str]) -> np.ndarray:
        opened = [_open(image) for image in images]
        blank = Image.new("RGB", (1, 1))
        pictures = [blank if image is None else image for image in opened]
        inputs = self.processor(images=pictures, return_tensors="pt")
        states_NPF = self.model(inputs["pixel_values"]).last_hidden_state
        usable_N1 = np.array([[image is not None] for image in opened])
        return normalized(states_NPF.mean(dim=1).numpy()) * usable_N1


def _open(image: bytes | str) -> Image.Image | None:
    try:
        content = read_bytes(image) if isinstance(image, str) else image
        return Image.open(io.BytesIO(content), formats=FORMATS).convert("RGB")
    except UNREADABLE:
        return None


def _load_model(directory: Path) -> Any:
    model, info = _load(
        AutoModel,
        directory,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
    )
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing:
        raise ValueError(f"the weights in {directory} are not whole: {missing[0]} is missing")
    return model.eval()


def _load(cls: Any, directory: Path, **options: Any) -> Any:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return cls.from_pretrained(directory, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the encoder in {directory} cannot be loaded: {line}") from None
