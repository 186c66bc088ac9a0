"""Keeps a pipeline's summary: `python -m benchmarks.summary runs/quickstart synthetic`.

Writes benchmarks/results/pipeline-<dataset>.json, its frontier's picture beside it, and the table
between the markers of that data set in the README.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import RESULTS, stamp, write_block
from recsys.evaluate.report import readable_bytes
from recsys.files import read_json, write_json

FOLDERS = re.compile(r"(?<=[ =])[^ =]*/")  # of paths in a command, which mean nothing elsewhere
UNITS = {"ndcg@10": "", "hr@10": "", "size_bytes": "bytes", "latency_ms_p50": "ms"}


def tidy(summary: dict[str, Any], dataset: str, command: str) -> list[dict[str, Any]]:
    """Returns one row a value, with the keys that all results share."""
    shared = {
        "benchmark": "pipeline",
        "dataset": dataset,
        "system": "recsys",
        "seed": summary["seed"],
        "command": command,
        **stamp(),
        "hardware": summary["hardware"],
        "versions": summary["versions"],
    }
    values = [
        (row["name"], metric, row[metric], unit)
        for row in summary["rows"]
        for metric, unit in UNITS.items()
        if row[metric] is not None
    ]
    values += [(stage, "seconds", value, "s") for stage, value in summary["stages"].items()]
    return [
        {**shared, "variant": variant, "metric": metric, "value": value, "unit": unit}
        for variant, metric, value, unit in values
    ]


def markdown(summary: dict[str, Any], dataset: str, command: str) -> str:
    """Returns what the README says of a run."""
    teacher = next(row for row in summary["rows"] if row["name"] == "teacher")
    lines = [
        "| model | NDCG@10 (95 % interval) | HR@10 | of the teacher | size | p50, batch 1 |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in summary["rows"]:
        low, high = row["ndcg@10_interval"]
        size, latency = row["size_bytes"], row["latency_ms_p50"]
        lines.append(
            f"| {row['name']} | {row['ndcg@10']:.4f} ({low:.4f}-{high:.4f}) | {row['hr@10']:.4f} | "
            f"{row['ndcg@10'] / teacher['ndcg@10']:.1%} | "
            f"{readable_bytes(size) if size else ''} | {f'{latency:.2f} ms' if latency else ''} |"
        )
    best = summary["best_possible"]
    times = ", ".join(f"{stage} {value:.0f}" for stage, value in summary["stages"].items())
    machine = summary["hardware"]
    return "\n".join(
        [
            *lines,
            "",
            *([f"Best possible on this log: NDCG@10 {best['ndcg@10']:.4f}."] if best else []),
            f"`{command}`, seed {summary['seed']}, {machine['cores']} cores ({machine['cpu']}), "
            f"{machine['memory_gib']} GiB; {summary['seconds']:.0f} seconds in all ({times}).",
            "",
            f"![frontier](benchmarks/results/pipeline-{dataset}.png)",
        ]
    )


def main(run: Path, dataset: str) -> None:
    """Keeps the results of the run directory `run`."""
    summary = read_json(run / "summary.json")
    command = FOLDERS.sub("", summary["command"])
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"pipeline-{dataset}.json", tidy(summary, dataset, command))
    shutil.copyfile(run / "frontier" / "frontier.png", RESULTS / f"pipeline-{dataset}.png")
    write_block(dataset, markdown(summary, dataset, command))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
