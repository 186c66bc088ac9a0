"""A text classifier taught by a larger one: labels hard and soft, states and attention.

The student is one that `recsys.models.text.simple_student` makes of the teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
)

from recsys.data.texts import LabelledTexts
from recsys.models.text import (
    Cut,
    TextClassifier,
    load_classifier,
)
from recsys.train.text import Epoch, TextTrainConfig, fit

TEACHER_TRAINING = TextTrainConfig(epochs=4, learning_rate=1e-4)
STUDENT_TRAINING = TextTrainConfig(epochs=10, learning_rate=5e-4)

Labels = Literal["softmax", "binary"]


@dataclass(frozen=True, kw_only=True)
class TextDistillConfig:
    """How, and how much, a text student listens to its teacher."""

    labels: Labels = "softmax"
    """Whether categories exclude each other, or each is a yes or no of its own."""
    soft_weight: float = 0.7
    """Share of the label loss that the teacher's distribution has."""
    temperature: float = 2.0
    """Softens the teacher's and the student's distribution alike."""
    states_weight: float = 10.0
    """Weight of the distance of states, layer by layer."""
    attention_weight: float = 1.0
    """Weight of the divergence of attention, head by head."""

    def __post_init__(self) -> None:
        if not 0 <= self.soft_weight <= 1:
            raise ValueError(f"soft_weight must be in [0, 1], not {self.soft_weight}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.states_weight < 0 or self.attention_weight < 0:
            raise ValueError("states_weight and attention_weight must be at least 0")


def load_teacher(
    encoder: str,
    texts: LabelledTexts,
    config: TextTrainConfig = TEACHER_TRAINING,
    *,
    descriptions: Sequence[str] = (),
    max_tokens: int = 64,
) -> TextClassifier:
    """Returns a pre-trained encoder, fine-tuned to tell the categories of `texts`.

    Args:
        encoder: a name on the Hugging Face hub, or a directory.
        descriptions: a text about each category, where it starts; none for noise.

    Raises:
        ValueError: it cannot be found, lacks a part, or is not of BERT's form; or the descriptions
            are not one for each category.
    """
    teacher = load_classifier(encoder, texts.categories, max_tokens=max_tokens, seed=config.seed)
    fine_tune(teacher, texts, config, descriptions)
    return teacher


def fine_tune(
    teacher: TextClassifier,
    texts: LabelledTexts,
    config: TextTrainConfig,
    descriptions: Sequence[str] = (),
) -> list[Epoch]:
    """Trains `teacher` in place, from where the descriptions lie if there are any."""
    if descriptions:
        teacher.describe(descriptions)
    return fit(teacher, texts, config)


def train_student(
    student: TextClassifier,
    teacher: TextClassifier,
    texts: LabelledTexts,
    config: TextTrainConfig = STUDENT_TRAINING,
    distillation: TextDistillConfig = TextDistillConfig(),
) -> list[Epoch]:
    """Trains `student` in place and returns what its epochs came to.

    Raises:
        ValueError: the student was not made by `simple_student`, its categories or those of the
            texts are not the teacher's, or the loss is not finite.
    """
    if student.cut is None or teacher.categories != student.categories:
        raise ValueError("this is no student of the teacher's: make one with simple_student")
    return fit(student, texts, config, TextDistillation(teacher, student.cut, distillation))


class TextDistillation(nn.Module):
    """The loss of a student beside its teacher, which reads the same texts without dropout."""

    def __init__(self, teacher: TextClassifier, cut: Cut, config: TextDistillConfig):
        super().__init__()
        self.config, self.cut = config, cut
        self.projection_DS = nn.Parameter(cut.projection_DS.clone())
        self.read = torch.no_grad()(teacher.eval().read)  # no parameter of this module

    def forward(self, student: TextClassifier, tokens_NT: Tensor, labels_N: Tensor) -> Tensor:
        expected, found = self.read(tokens_NT), student.read(tokens_NT)
        loss = label_loss(
            self.config.labels,
            found.logits_NC.float(),
            labels_N,
            expected.logits_NC.float(),
            soft_weight=self.config.soft_weight,
            temperature=self.config.temperature,
        )
        mask_NT = student.mask(tokens_NT)
        layers = [0, *(layer + 1 for layer in self.cut.layers)]
        states = [
            state_loss(states_NTS @ self.projection_DS.T, expected.states_NTD[layer], mask_NT)
            for states_NTS, layer in zip(found.states_NTD, layers, strict=True)
        ]
        attention = [
            attention_loss(attention_NHTT, expected.attention_NHTT[layer][:, heads], mask_NT)
            for attention_NHTT, layer, heads in zip(
                found.attention_NHTT, self.cut.layers, self.cut.heads, strict=True
            )
        ]
        loss = loss + self.config.states_weight * torch.stack(states).mean()
        return loss + self.config.attention_weight * torch.stack(attention).mean()


def label_loss(
    labels: Labels,
    logits_NC: Tensor,
    labels_N: Tensor,
    teacher_NC: Tensor,
    *,
    soft_weight: float,
    temperature: float,
) -> Tensor:
    """Returns the mean over texts of (1 - w) hard + w T^2 soft (Hinton, arXiv 1503.02531).

    Hard is the loss by the category, soft by the teacher's softmax: cross-entropy, or in its binary
    form -sum_c [y log p + (1 - y) log(1 - p)], p a sigmoid.
    """
    loss = LOSSES[labels]
    hard_NC = one_hot(labels_N, logits_NC.shape[1]).to(logits_NC.dtype)
    soft_NC = (teacher_NC / temperature).softmax(dim=1)
    hard, soft = loss(logits_NC, hard_NC), loss(logits_NC / temperature, soft_NC)
    return (1 - soft_weight) * hard + soft_weight * temperature**2 * soft


def _binary(logits_NC: Tensor, labels_NC: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits_NC, labels_NC, reduction="sum") / len(logits_NC)


LOSSES = {"softmax": cross_entropy, "binary": _binary}


def state_loss(states_NTD: Tensor, teacher_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    """Returns the mean squared difference over tokens (TinyBERT, arXiv 1909.10351)."""
    return (states_NTD.float() - teacher_NTD.float())[mask_NT].square().mean()


def attention_loss(attention_NHTT: Tensor, teacher_NHTT: Tensor, mask_NT: Tensor) -> Tensor:
    """Returns the mean divergence KL(teacher | student) of what tokens attend to, over heads.

    MiniLM, arXiv 2002.10957.
    """
    student, teacher = attention_NHTT.float(), teacher_NHTT.float()
    tiny = torch.finfo(torch.float32).tiny  # padding is attended to with probability 0
    logs = teacher.clamp_min(tiny).log() - student.clamp_min(tiny).log()
    return (teacher * logs).sum(dim=-1).transpose(1, 2)[mask_NT].mean()
