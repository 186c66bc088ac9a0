"""A BERT-type encoder that tells the category of a text, and smaller ones made from it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from recsys.config import require_at_least
from recsys.data.content import locate
from recsys.data.encoders import TextEncoder, Tokenizer
from recsys.data.texts import LabelledTexts

BATCH_SIZE = 64
SAMPLE_SIZE = 256  # texts on which a teacher's states are looked at
BLOCKS = "encoder.layer"
HEADS_WRITE = ("attention.self.query", "attention.self.key", "attention.self.value")

State = dict[str, Tensor]


class Read(NamedTuple):
    """What a classifier makes of N texts of T tokens."""

    logits_NC: Tensor
    states_NTD: tuple[Tensor, ...]
    """Of the embeddings and of every layer."""
    attention_NHTT: tuple[Tensor, ...]
    """Probabilities, of every layer."""


class TextClassifier(nn.Module):
    """A Hugging Face model of BERT's form, and a linear map of its mean state to categories."""

    def __init__(self, model: Any, tokenizer: Tokenizer, categories: Sequence[str]):
        super().__init__()
        model.pooler = None  # the mean state is read, not the first one
        model.set_attn_implementation("eager")  # the only one that shows its probabilities
        self.model, self.tokenizer, self.categories = model, tokenizer, tuple(categories)
        self.cut: Cut | None = None  # of a teacher, if this is a student
        self.head = nn.Linear(model.config.hidden_size, len(self.categories))

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Returns logits_NC."""
        return self._classify(tokens_NT, self.model(tokens_NT, self.mask(tokens_NT).long())[0])

    def read(self, tokens_NT: Tensor) -> Read:
        """Returns the logits and what they come from."""
        found = self.model(
            tokens_NT,
            self.mask(tokens_NT).long(),
            output_hidden_states=True,
            output_attentions=True,
        )
        logits_NC = self._classify(tokens_NT, found.last_hidden_state)
        return Read(logits_NC, found.hidden_states, found.attentions)

    def mask(self, tokens_NT: Tensor) -> Tensor:
        """Returns where there are tokens, not padding."""
        return tokens_NT != self.tokenizer.padding

    def _classify(self, tokens_NT: Tensor, states_NTD: Tensor) -> Tensor:
        return self.head(self._mean(tokens_NT, states_NTD))

    def _mean(self, tokens_NT: Tensor, states_NTD: Tensor) -> Tensor:
        mask_NT1 = self.mask(tokens_NT)[..., None]
        return (states_NTD * mask_NT1).sum(dim=1) / mask_NT1.sum(dim=1)

    @torch.inference_mode()
    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Returns logits_NC."""
        self.eval()
        return torch.cat([self(tokens_NT) for tokens_NT in self._batches(texts)]).numpy()

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the index of each text's most likely category."""
        return self.logits(texts).argmax(axis=1)

    def _batches(self, texts: Sequence[str]) -> Iterator[Tensor]:
        starts = range(0, len(texts), BATCH_SIZE)
        return (self.tokenizer(texts[at : at + BATCH_SIZE]) for at in starts)

    @torch.inference_mode()
    def describe(self, texts_C: Sequence[str]) -> None:
        """Lets each category start where a text about it lies: as the direction of its mean state,
        seen from the mean of all; one without a text, as nothing.

        Raises:
            ValueError: there are more or fewer texts than categories, or all are empty.
        """
        if len(texts_C) != len(self.categories):
            raise ValueError(
                f"{len(texts_C)} texts cannot describe {len(self.categories)} categories"
            )
        has_text_C = torch.tensor([bool(text) for text in texts_C])
        if not has_text_C.any():
            raise ValueError("no category has a text to start at")
        self.eval()
        means = [
            self._mean(tokens_NT, self.model(tokens_NT, self.mask(tokens_NT).long())[0])
            for tokens_NT in self._batches(texts_C)
        ]
        states_CD = torch.cat(means)
        mean_D = states_CD[has_text_C].mean(dim=0)
        self.head.weight.copy_(normalize(states_CD - mean_D, dim=1) * has_text_C[:, None])
        self.head.bias.copy_(-(self.head.weight @ mean_D))  # what is told is seen from it, too


class Cut(NamedTuple):
    """Which part of a teacher a student of some shape is."""

    layers: list[int]
    """The teacher's layer that each of the student's stands for: every n-th, up to the last."""
    heads: list[Tensor]
    """Which heads of that layer, for each of the student's."""
    projection_DS: Tensor
    """The teacher's states to the student's; orthonormal columns."""


def load_classifier(
    encoder: str, categories: Sequence[str], *, max_tokens: int = 64, seed: int = 0
) -> TextClassifier:
    """Returns a pre-trained encoder with a new linear map on top.

    Args:
        encoder: a name on the Hugging Face hub, or a directory.

    Raises:
        ValueError: it cannot be found, lacks a part, or is not of BERT's form.
    """
    require_at_least(1, max_tokens=max_tokens)
    found = TextEncoder(locate(encoder, "text"), max_tokens)
    model = found.mean_state.model
    if f"{BLOCKS}.0.{HEADS_WRITE[0]}.weight" not in model.state_dict():
        kind = type(model).__name__
        raise ValueError(
            f"{encoder} is a {kind}, which is not of BERT's form: give a BERT or RoBERTa"
        )
    torch.manual_seed(seed)
    return TextClassifier(model, found.tokens, categories)


def simple_student(
    teacher: TextClassifier,
    texts: LabelledTexts,
    *,
    num_layers: int = 2,
    width: int | None = None,
    from_teacher: bool = True,
    seed: int = 0,
) -> TextClassifier:
    """Returns a student of a teacher's form, with heads of the same size.

    Args:
        texts: what the teacher was trained on; a few show where its states lie.
        width: none for half of the teacher's.
        from_teacher: whether the student starts as a part of the teacher, or from noise.

    Raises:
        ValueError: the teacher is smaller, or its heads do not fit the width.
    """
    config = teacher.model.config
    head_size = config.hidden_size // config.num_attention_heads
    width = width or config.hidden_size // 2
    if not 1 <= num_layers <= config.num_hidden_layers:
        raise ValueError(
            f"num_layers is {num_layers}, and the teacher has {config.num_hidden_layers} layers"
        )
    if width % head_size or not head_size <= width <= config.hidden_size:
        raise ValueError(
            f"width is {width}; with the teacher's heads it can be a multiple of {head_size} up to "
            f"{config.hidden_size}"
        )
    smaller = type(config)(**config.to_dict())
    smaller.num_hidden_layers, smaller.hidden_size = num_layers, width
    smaller.num_attention_heads = width // head_size
    smaller.intermediate_size = config.intermediate_size * width // config.hidden_size
    # What it attends to is taught, and would be compared after dropout.
    smaller.attention_probs_dropout_prob = 0.0
    torch.manual_seed(seed)
    student = TextClassifier(type(teacher.model)(smaller), teacher.tokenizer, teacher.categories)
    student.cut = _cut(teacher, smaller, texts.texts_N[:SAMPLE_SIZE])
    if from_teacher:
        student.load_state_dict(_part_of(teacher, student, student.cut))
    return student


@torch.no_grad()
def _cut(teacher: TextClassifier, smaller: Any, texts: Sequence[str]) -> Cut:
    """Returns which part of the teacher a student with the config `smaller` stands for.

    Layers are every n-th (TinyBERT, arXiv 1909.10351); heads those whose map from values to output
    is largest.
    """
    config = teacher.model.config
    every = config.num_hidden_layers / smaller.num_hidden_layers
    layers = [round(every * (layer + 1)) - 1 for layer in range(smaller.num_hidden_layers)]
    heads = []
    for layer in layers:
        attention = teacher.model.get_submodule(f"{BLOCKS}.{layer}.attention")
        split = (config.num_attention_heads, -1)
        values_HSD = attention.get_parameter("self.value.weight").unflatten(0, split)
        outputs_DHS = attention.get_parameter("output.dense.weight").unflatten(1, split)
        size_H = torch.einsum("dhs,hse->hde", outputs_DHS, values_HSD).square().sum(dim=(1, 2))
        heads.append(_largest(size_H, smaller.num_attention_heads))
    return Cut(layers, heads, _projection(teacher, smaller.hidden_size, texts))


def _projection(teacher: TextClassifier, width: int, texts: Sequence[str]) -> Tensor:
    """Returns the directions in which the states of all layers, on some texts, are largest."""
    if width == teacher.model.config.hidden_size:
        return torch.eye(width)  # the teacher's own, so that what is taken is equal
    tokens_NT = teacher.tokenizer(texts)
    states = teacher.eval().read(tokens_NT).states_NTD
    states_ND = torch.cat([states_NTD[teacher.mask(tokens_NT)] for states_NTD in states]).double()
    directions_DD = torch.linalg.eigh(states_ND.T @ states_ND).eigenvectors
    return directions_DD[:, -width:].flip(1).float()


@torch.no_grad()
def _part_of(teacher: TextClassifier, student: TextClassifier, cut: Cut) -> State:
    """Returns the student's weights: the cut of the teacher's."""
    taught = teacher.state_dict()
    blocks = [
        _kept(teacher, layer, heads, student.model.config.intermediate_size)
        for layer, heads in zip(cut.layers, cut.heads, strict=True)
    ]
    state = {}
    for name in student.state_dict():
        if not name.startswith(f"model.{BLOCKS}."):
            state[name] = _project(name, taught[name], cut.projection_DS)
            continue
        index, _, inside = name.removeprefix(f"model.{BLOCKS}.").partition(".")
        weight = taught[f"model.{BLOCKS}.{cut.layers[int(index)]}.{inside}"]
        map_name, (channels, units) = inside.rpartition(".")[0], blocks[int(index)]
        kept = {"attention.output.dense": channels, "output.dense": units}
        made = {**dict.fromkeys(HEADS_WRITE, channels), "intermediate.dense": units}
        if map_name in kept and weight.ndim == 2:
            state[name] = cut.projection_DS.T @ weight[:, kept[map_name]]
        elif map_name in made and weight.ndim == 1:
            state[name] = weight[made[map_name]]
        else:
            rows = made.get(map_name, slice(None))
            state[name] = _project(name, weight[rows], cut.projection_DS)
    return state


def _kept(
    teacher: TextClassifier, layer: int, heads: Tensor, num_units: int
) -> tuple[Tensor, Tensor]:
    """Returns the channels of some heads of a layer, and its largest feed-forward units."""
    config = teacher.model.config
    channels = torch.arange(config.hidden_size).view(config.num_attention_heads, -1)
    units = _largest(_unit_sizes(teacher.model.get_submodule(f"{BLOCKS}.{layer}")), num_units)
    return channels[heads].flatten(), units


def _project(name: str, weight: Tensor, projection_DS: Tensor) -> Tensor:
    """Returns what reads or is a state, for the student's; a scale is the diagonal of its map."""
    if name == "head.bias":
        return weight
    if name.endswith("LayerNorm.weight"):
        return weight @ projection_DS.square()
    return weight @ projection_DS


def _unit_sizes(block: nn.Module) -> Tensor:
    """Returns how much each feed-forward unit can read and write."""
    reads_UD = block.get_parameter("intermediate.dense.weight")
    writes_DU = block.get_parameter("output.dense.weight")
    return reads_UD.norm(dim=1) * writes_DU.norm(dim=0)


def _largest(values: Tensor, count: int) -> Tensor:
    return values.topk(count).indices.sort().values
