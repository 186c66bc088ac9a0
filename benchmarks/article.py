"""The article's case on real text: `python -m benchmarks.article movielens-1m --items ITEMS`.

A BERT-type teacher and a simple BERT student tell one of ten categories of an item from its text,
on items kept apart. Rows go to benchmarks/results/article.json; `--readme` writes the table between
the markers `article-<dataset>` of the README.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import tyro

from benchmarks.command import command
from benchmarks.rows import Results, Row, table, values_of
from benchmarks.text_models import (
    ALONE,
    BINARY,
    COMPRESSED,
    DISTILLED,
    LINES,
    TEACHER,
    TextModels,
    Values,
    means,
    shares,
    size,
)
from benchmarks.variants import RUNS
from recsys.data.read import read_table
from recsys.data.texts import LabelledTexts, label
from recsys.distill.text import TextDistillConfig
from recsys.evaluate.text import Classifier, evaluate

BENCHMARK = "article"
ARTICLE = {TEACHER: 0.9, ALONE: 0.7, DISTILLED: 0.85, COMPRESSED: 0.8}
TAUGHT = {DISTILLED: TextDistillConfig(), BINARY: TextDistillConfig(labels="binary")}
COLUMNS = {
    "movielens-1m": (("title", "description"), "genres"),
    "amazon-beauty": (("title",), "categories"),
}
TEST_SHARE = 0.2
SMALLEST_GAP = 0.02  # about the error of a mean over some hundred items


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train on."""

    dataset: tyro.conf.Positional[str]
    """A data set."""
    items: str | None = None
    """Its item table."""
    encoder: str = "bert-base-uncased"
    """The teacher before it is fine-tuned: a name on the Hugging Face hub, or a directory."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batches, dropout, and of which items are kept apart."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is trained."""

    def __post_init__(self) -> None:
        if self.dataset not in COLUMNS or (self.items is None and not self.readme):
            raise ValueError(f"give one of {', '.join(COLUMNS)}, and its --items")


def texts_of(dataset: str, items: pa.Table) -> LabelledTexts:
    """Returns the texts and categories of a data set; of a path of categories, the last counts."""
    text_columns, category = COLUMNS[dataset]
    if dataset.startswith("amazon"):
        last = [path[-1:] if path else None for path in items[category].to_pylist()]
        items = items.set_column(items.column_names.index(category), category, pa.array(last))
    return label(items, text_columns, category)


def measure(results: Results, options: Options) -> None:
    """Trains and measures what is not measured yet."""
    for seed in options.seeds:
        models(results, options, seed).measure()


def models(results: Results, options: Options, seed: int) -> TextModels:
    """Returns the models of a seed."""
    assert options.items is not None, "Options has checked"
    texts = texts_of(options.dataset, read_table(options.items))
    training, test = texts.split(TEST_SHARE, seed)

    def values(model: Classifier) -> Values:
        return {"accuracy": (evaluate(model, test)["accuracy"], "")}

    return TextModels(
        results=results,
        dataset=options.dataset,
        seed=seed,
        command=f"python -m benchmarks.{BENCHMARK} {options.dataset} --seeds {seed}",
        directory=RUNS / options.dataset / BENCHMARK / str(seed),
        encoder=options.encoder,
        texts=training,
        values=values,
        taught=TAUGHT,
    )


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds, beside what the article says."""
    lines = []
    for variant in LINES:
        said = f"{ARTICLE[variant]:.0%}" if variant in ARTICLE else ""
        found = _percent(values_of(rows, "accuracy", variant=variant))
        lines.append([variant, said, found, size(rows, variant)])
    both = (ARTICLE, means(rows, "accuracy"))
    lines += [[*line, ""] for line in shares(both, SMALLEST_GAP)]
    return table(["accuracy", "the article", "measured", "size"], lines)


def _percent(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.1%}" for value in values)
    return f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}"


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
