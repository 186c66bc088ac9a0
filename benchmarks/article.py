"""The article's case on real text: `python -m benchmarks.article movielens-1m --items ITEMS`.

A BERT-type teacher and a simple BERT student tell one of ten categories of an item from its text,
on items kept apart. The student alone has the same shape, texts and epochs, and starts from noise;
in a second form as a part of the teacher. Rows go to benchmarks/results/article.json; `--readme`
writes the table between the markers `article` of the README.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import tyro
from safetensors.torch import load_file, save_file

from benchmarks.command import command
from benchmarks.rows import Results, Row, Subject, table, values_of
from benchmarks.variants import RUNS
from recsys.compress.text import compress
from recsys.data.read import read_table
from recsys.data.texts import LabelledTexts, label
from recsys.distill.text import (
    STUDENT_TRAINING,
    TEACHER_TRAINING,
    TextDistillConfig,
    train_student,
)
from recsys.evaluate.text import Classifier, evaluate
from recsys.models.text import TextClassifier, load_classifier, simple_student
from recsys.train.text import TextTrainConfig, fit

BENCHMARK = "article"
TEACHER, ALONE, DISTILLED, COMPRESSED = "teacher", "student alone", "student", "compressed student"
FROM_TEACHER, BINARY = "student alone, from the teacher's weights", "student, binary labels"
ARTICLE = {TEACHER: 0.9, ALONE: 0.7, DISTILLED: 0.85, COMPRESSED: 0.8}
TAUGHT = {DISTILLED: TextDistillConfig(), BINARY: TextDistillConfig(labels="binary")}
VARIANTS = (TEACHER, ALONE, DISTILLED, FROM_TEACHER, BINARY)  # in the order of training
LINES = (TEACHER, ALONE, FROM_TEACHER, DISTILLED, BINARY, COMPRESSED)
COLUMNS = {
    "movielens-1m": (("title", "description"), "genres"),
    "amazon-beauty": (("title",), "categories"),
}
TEST_SHARE = 0.2
NO_GAP = 0.02  # about the error of a mean over some hundred items


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train on."""

    dataset: tyro.conf.Positional[str]
    """A data set, or "all" for the table of what is measured."""
    items: str | None = None
    """Its item table."""
    encoder: str = "bert-base-uncased"
    """The teacher before it is fine-tuned: a name on the Hugging Face hub, or a directory."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batches, dropout, and of which items are kept apart."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is trained."""

    def __post_init__(self) -> None:
        if not self.readme and (self.dataset not in COLUMNS or self.items is None):
            raise ValueError(f"give one of {', '.join(COLUMNS)}, and its --items")


def texts_of(dataset: str, items: pa.Table) -> LabelledTexts:
    """Returns the texts and categories of a data set; of a path of categories, the last counts."""
    text_columns, category = COLUMNS[dataset]
    if dataset.startswith("amazon"):
        last = [path[-1:] if path else None for path in items[category].to_pylist()]
        items = items.set_column(items.column_names.index(category), category, pa.array(last))
    return label(items, text_columns, category)


class Case:
    """The models of a data set and a seed; those that were trained before are read."""

    def __init__(self, results: Results, options: Options, seed: int):
        self.results, self.options, self.seed = results, options, seed
        self.directory = RUNS / options.dataset / BENCHMARK / str(seed)
        self.directory.mkdir(parents=True, exist_ok=True)
        assert options.items is not None, "Options has checked"
        texts = texts_of(options.dataset, read_table(options.items))
        self.training, self.test = texts.split(TEST_SHARE, seed)

    def measure(self) -> None:
        """Measures what is not measured yet."""
        teacher = load_classifier(self.options.encoder, self.training.categories, seed=self.seed)
        tune = partial(fit, teacher, self.training, self._at(TEACHER_TRAINING))
        self._measure(TEACHER, teacher, tune)
        config = self._at(STUDENT_TRAINING)
        for variant in VARIANTS[1:]:
            student = self._student(teacher, from_teacher=variant != ALONE)
            train = partial(fit, student, self.training, config)
            if variant in TAUGHT:
                taught = (student, teacher, self.training, config, TAUGHT[variant])
                train = partial(train_student, *taught)
            self._measure(variant, student, train)
            if variant == DISTILLED:
                compressed = compress(student, self.directory / COMPRESSED)
                self._put(COMPRESSED, compressed, compressed.size_bytes)

    def _at(self, config: TextTrainConfig) -> TextTrainConfig:
        return replace(config, seed=self.seed)

    def _student(self, teacher: TextClassifier, from_teacher: bool = True) -> TextClassifier:
        return simple_student(teacher, self.training, from_teacher=from_teacher, seed=self.seed)

    def _measure(self, variant: str, model: TextClassifier, train: Callable[[], object]) -> None:
        """Trains a model, unless that was done, and measures it."""
        weights = self.directory / f"{variant}.safetensors"
        if weights.exists():
            model.load_state_dict(load_file(weights))
        else:
            train()
            save_file(model.state_dict(), weights)
        if not self.results.has(*self._subject(variant)):
            whole = compress(model, self.directory / variant, "float32")
            self._put(variant, model, whole.size_bytes)

    def _put(self, variant: str, model: Classifier, size_bytes: int) -> None:
        accuracy = evaluate(model, self.test)["accuracy"]
        values = {"accuracy": (accuracy, ""), "size_bytes": (float(size_bytes), "bytes")}
        self.results.put(*self._subject(variant), values)

    def _subject(self, variant: str) -> tuple[Subject, str]:
        command = f"python -m benchmarks.{BENCHMARK} {self.options.dataset} --seeds {self.seed}"
        return Subject(self.options.dataset, "recsys", variant, self.seed), command


def measure(results: Results, options: Options) -> None:
    """Trains and measures what is not measured yet."""
    for seed in options.seeds:
        Case(results, options, seed).measure()


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds, beside what the article says."""
    datasets = [name for name in COLUMNS if any(row.dataset == name for row in rows)]
    lines = []
    for variant in LINES:
        said = f"{ARTICLE[variant]:.0%}" if variant in ARTICLE else ""
        sizes = values_of(rows, "size_bytes", variant=variant)
        found = [values_of(rows, "accuracy", dataset=name, variant=variant) for name in datasets]
        size = f"{statistics.mean(sizes) / 2**20:.1f} MiB" if sizes else ""
        lines.append([variant, said, *(_percent(values) for values in found), size])
    means = [ARTICLE, *(_means(rows, name) for name in datasets)]
    lines.append(["of the gap, the student closes", *map(_gap_closed, means), ""])
    lines.append(["of the teacher, the compressed student keeps", *map(_kept, means), ""])
    return table(["accuracy", "the article", *datasets, "size"], lines)


def _percent(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.1%}" for value in values)
    return f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}"


def _means(rows: Sequence[Row], dataset: str) -> dict[str, float]:
    found = {name: values_of(rows, "accuracy", dataset=dataset, variant=name) for name in LINES}
    return {name: statistics.mean(values) for name, values in found.items() if values}


def _gap_closed(mean: Mapping[str, float]) -> str:
    if not {TEACHER, ALONE, DISTILLED} <= mean.keys():
        return ""
    gap = mean[TEACHER] - mean[ALONE]
    return f"{(mean[DISTILLED] - mean[ALONE]) / gap:.0%}" if gap > NO_GAP else "there is none"


def _kept(mean: Mapping[str, float]) -> str:
    return f"{mean[COMPRESSED] / mean[TEACHER]:.0%}" if {TEACHER, COMPRESSED} <= mean.keys() else ""


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
