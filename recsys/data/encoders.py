"""Hugging Face encoders of text and images; weights come from safetensors only."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from recsys.data.content import normalized
from recsys.data.read import read_bytes

FORMATS = ("JPEG", "PNG", "WEBP")  # no format that runs another program
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class TextEncoder:
    """Texts to the mean of their tokens' states, of length 1."""

    def __init__(self, directory: Path, max_tokens: int):
        self.model, self.tokenizer = _load_model(directory), _load(AutoTokenizer, directory)
        self.max_tokens = min(max_tokens, self.tokenizer.model_max_length)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        states_NTF = self.model(**tokens).last_hidden_state
        # A sum: how many tokens there were is lost in the length anyway.
        return normalized((states_NTF * tokens["attention_mask"][..., None]).sum(dim=1).numpy())


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
