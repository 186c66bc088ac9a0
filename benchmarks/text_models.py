"""A teacher and its students that read text: what `article` and `next_title` have in common.

The student alone has the same shape, texts and epochs, and starts from noise; in a second form as
a part of the teacher.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.rows import Results, Row, Subject, values_of
from recsys.compress.text import compress
from recsys.data.texts import LabelledTexts
from recsys.distill.text import (
    STUDENT_TRAINING,
    TEACHER_TRAINING,
    TextDistillConfig,
    fine_tune,
    train_student,
)
from recsys.evaluate.text import Classifier
from recsys.models.text import TextClassifier, load_classifier, simple_student
from recsys.train.text import TextTrainConfig, fit

TEACHER, ALONE, DISTILLED, COMPRESSED = "teacher", "student alone", "student", "compressed student"
FROM_TEACHER, BINARY = "student alone, from the teacher's weights", "student, binary labels"
LINES = (TEACHER, ALONE, FROM_TEACHER, DISTILLED, BINARY, COMPRESSED)

Values = dict[str, tuple[float, str]]


@dataclass(frozen=True, kw_only=True)
class TextModels:
    """The models of one task and seed; those that were trained before are read."""

    results: Results
    dataset: str
    seed: int
    command: str
    """What measures them."""
    directory: Path
    """Where they go."""
    encoder: str
    """The teacher before it is fine-tuned."""
    texts: LabelledTexts
    """What they learn from."""
    values: Callable[[Classifier], Values]
    """What one comes to on texts kept apart."""
    descriptions: Sequence[str] = ()
    """Texts about the categories, at which the teacher's start; none for noise."""
    max_tokens: int = 64
    """Tokens of a text that are read."""
    taught: Mapping[str, TextDistillConfig]
    """Names of students, and how each listens."""
    teacher_training: TextTrainConfig = TEACHER_TRAINING
    student_training: TextTrainConfig = STUDENT_TRAINING

    def measure(self) -> None:
        """Measures what is not measured yet."""
        self.directory.mkdir(parents=True, exist_ok=True)
        categories = self.texts.categories
        teacher = load_classifier(
            self.encoder, categories, max_tokens=self.max_tokens, seed=self.seed
        )
        tuning = replace(self.teacher_training, seed=self.seed)
        tune = partial(fine_tune, teacher, self.texts, tuning, self.descriptions)
        self._measure(TEACHER, teacher, tune)
        training = replace(self.student_training, seed=self.seed)
        for variant in (ALONE, FROM_TEACHER):
            student = self._student(teacher, from_teacher=variant == FROM_TEACHER)
            self._measure(variant, student, partial(fit, student, self.texts, training))
        for variant, config in self.taught.items():
            student = self._student(teacher)
            learn = partial(train_student, student, teacher, self.texts, training, config)
            self._measure(variant, student, learn)
            if variant == DISTILLED and not self._has(COMPRESSED):
                compressed = compress(student, self.directory / COMPRESSED)
                self._put(COMPRESSED, compressed, compressed.size_bytes)

    def _student(self, teacher: TextClassifier, from_teacher: bool = True) -> TextClassifier:
        return simple_student(teacher, self.texts, from_teacher=from_teacher, seed=self.seed)

    def _measure(self, variant: str, model: TextClassifier, train: Callable[[], object]) -> None:
        """Trains a model, unless that was done, and measures it."""
        weights = self.directory / f"{variant}.safetensors"
        if weights.exists():
            model.load_state_dict(load_file(weights))
        else:
            train()
            save_file(model.state_dict(), weights)
        if not self._has(variant):
            whole = compress(model, self.directory / variant, "float32")
            self._put(variant, model, whole.size_bytes)

    def _has(self, variant: str) -> bool:
        return self.results.has(self._subject(variant), self.command)

    def _put(self, variant: str, model: Classifier, size_bytes: int) -> None:
        values = {**self.values(model), "size_bytes": (float(size_bytes), "bytes")}
        self.results.put(self._subject(variant), self.command, values)

    def _subject(self, variant: str) -> Subject:
        return Subject(self.dataset, "recsys", variant, self.seed)


def size(rows: Sequence[Row], variant: str) -> str:
    """Returns the mean size over seeds, readable."""
    sizes = values_of(rows, "size_bytes", variant=variant)
    return f"{statistics.mean(sizes) / 2**20:.1f} MiB" if sizes else ""


def means(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Returns means over seeds, by variant."""
    found = {name: values_of(rows, metric, variant=name) for name in LINES}
    return {name: statistics.mean(values) for name, values in found.items() if values}


def shares(columns: Sequence[Mapping[str, float]], smallest_gap: float) -> list[list[str]]:
    """Returns the last lines of a table: what of the gap is closed, and of the teacher kept.

    Args:
        columns: means by variant.
    """
    closed = [_gap_closed(mean, smallest_gap) for mean in columns]
    return [
        ["of the gap, the student closes", *closed],
        ["of the teacher, the compressed student keeps", *map(_kept, columns)],
    ]


def _gap_closed(mean: Mapping[str, float], smallest: float) -> str:
    """Returns how much of the distance from the student alone to the teacher the student closes;
    of one below `smallest`, that there is none."""
    if not {TEACHER, ALONE, DISTILLED} <= mean.keys():
        return ""
    gap = mean[TEACHER] - mean[ALONE]
    return f"{(mean[DISTILLED] - mean[ALONE]) / gap:.0%}" if gap > smallest else "there is none"


def _kept(mean: Mapping[str, float]) -> str:
    """Returns how much of the teacher the compressed student keeps."""
    return f"{mean[COMPRESSED] / mean[TEACHER]:.0%}" if {TEACHER, COMPRESSED} <= mean.keys() else ""
