"""Recommending by text alone: `python -m benchmarks.next_title movielens-1m --log L --items I`.

A BERT-type teacher and a simple BERT student read the titles of a user's last items and tell which
item comes next. In the teacher an item starts where its title lies, and so it does in students that
start from the teacher. Test metrics, full ranking, seen items removed. Rows go to
benchmarks/results/next_title.json; `--readme` writes the table between the markers
`next_title-<dataset>` of the README.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from benchmarks.command import command
from benchmarks.rows import Results, Row, table, values_of
from benchmarks.text_models import (
    DISTILLED,
    LINES,
    TextModels,
    Values,
    means,
    shares,
    size,
)
from benchmarks.variants import METRICS, RUNS, job, preset_name, spread
from recsys.data.sequences import Dataset
from recsys.data.texts import Titles
from recsys.distill.text import TextDistillConfig
from recsys.evaluate.text import Classifier, rank
from recsys.train.text import TextTrainConfig

BENCHMARK = "next_title"
TITLES = {"movielens-1m": ("title", "year"), "amazon-beauty": ("title",)}
TEACHER_TRAINING = TextTrainConfig(epochs=3, learning_rate=1e-4)
STUDENT_TRAINING = TextTrainConfig(epochs=6, learning_rate=5e-4)
SMALLEST_GAP = 0.002  # below that, what another seed changes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train on."""

    dataset: tyro.conf.Positional[str]
    """A data set."""
    log: str | None = None
    """Its log."""
    items: str | None = None
    """Its item table."""
    encoder: str = "bert-base-uncased"
    """The teacher before it is fine-tuned: a name on the Hugging Face hub, or a directory."""
    num_last: int = 4
    """Titles of a history that are read."""
    num_per_user: int = 2
    """Items of every user's training part that are to be told."""
    max_tokens: int = 32
    """Tokens of a text that are read."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batches and dropout."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is trained."""

    def __post_init__(self) -> None:
        if self.dataset not in TITLES or (None in (self.log, self.items) and not self.readme):
            raise ValueError(f"give one of {', '.join(TITLES)}, its --log and its --items")


def measure(results: Results, options: Options) -> None:
    """Trains and measures what is not measured yet."""
    directory = RUNS / options.dataset / BENCHMARK
    assert options.log is not None, "Options has checked"
    assert options.items is not None, "Options has checked"
    words = [preset_name(options.dataset), "--log", options.log, "--items", options.items]
    job("prepare", words, output=directory / "dataset")
    dataset = Dataset.open(directory / "dataset")
    titles = Titles(dataset, TITLES[options.dataset], num_last=options.num_last)
    texts = titles.next_items(options.num_per_user)
    for seed in options.seeds:
        words = _words(options, seed)
        TextModels(
            results=results,
            dataset=options.dataset,
            seed=seed,
            command=shlex.join(["python", "-m", f"benchmarks.{BENCHMARK}", *words]),
            directory=directory / "-".join(word.removeprefix("--") for word in words[1:]),
            encoder=options.encoder,
            texts=texts,
            values=lambda model: _values(model, titles),
            descriptions=titles.descriptions,
            max_tokens=options.max_tokens,
            taught={DISTILLED: TextDistillConfig()},
            teacher_training=TEACHER_TRAINING,
            student_training=STUDENT_TRAINING,
        ).measure()


def _words(options: Options, seed: int) -> list[str]:
    shape = {
        "num-last": options.num_last,
        "num-per-user": options.num_per_user,
        "max-tokens": options.max_tokens,
        "seeds": seed,
    }
    return [options.dataset, *(word for k, v in shape.items() for word in (f"--{k}", str(v)))]


def _values(model: Classifier, titles: Titles) -> Values:
    report = rank(model, titles)
    return {metric: (report[metric], "") for metric in METRICS}


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds."""
    lines = []
    for variant in LINES:
        found = [values_of(rows, metric, variant=variant) for metric in METRICS]
        if found[0]:
            lines.append([variant, *map(spread, found), f"{len(found[0])}", size(rows, variant)])
    both = [means(rows, metric) for metric in METRICS]
    lines += [[*line, "", ""] for line in shares(both, SMALLEST_GAP)]
    return table(["", "NDCG@10", "HR@10", "seeds", "size"], lines)


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
