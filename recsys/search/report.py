"""What a person looks at: the frontier as a picture and as a page."""

import base64
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from recsys.evaluate.report import readable_bytes
from recsys.search.pareto import ACCURACY, LATENCY, SIZE

Row = Mapping[str, Any]
FRONT, REST, TEACHER, CHOSEN, BASELINE = "#1f5fbf", "#9aa5b1", "#b3261e", "#e08a00", "#5f6b76"


def write_plot(
    path: Path, rows: Sequence[Row], teacher: Row, baselines: Mapping[str, float], chosen: str
) -> None:
    """Writes a picture of accuracy against bytes and against milliseconds."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, SIZE, "size (KiB)", 1 / 1024, rows, teacher, baselines, chosen)
    _draw(right, LATENCY, "p50 latency at batch 1 (ms)", 1, rows, teacher, baselines, chosen)
    left.set_ylabel("NDCG@10 on validation")
    left.legend(loc="lower right", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def _draw(
    axes: Axes,
    cost: str,
    label: str,
    unit: float,
    rows: Sequence[Row],
    teacher: Row,
    baselines: Mapping[str, float],
    chosen: str,
) -> None:
    for on_front, color, name in ((False, REST, "measured"), (True, FRONT, "on the front")):
        part = [row for row in rows if row["on_front"] is on_front]
        points = [(row[cost] * unit, row[ACCURACY]) for row in part]
        if points:
            axes.scatter(*zip(*points, strict=True), color=color, label=name, zorder=3, s=36)
    staircase = _envelope([(row[cost] * unit, row[ACCURACY]) for row in rows])
    axes.step(*zip(*staircase, strict=True), where="post", color=FRONT, alpha=0.5, zorder=2)
    if teacher[cost] is not None:
        place = (teacher[cost] * unit, teacher[ACCURACY])
        axes.scatter(*place, color=TEACHER, marker="*", s=140, label="teacher")
    axes.axhline(teacher[ACCURACY], color=TEACHER, linewidth=0.8, linestyle=":")
    picked = next(row for row in rows if row["name"] == chosen)
    axes.scatter(
        picked[cost] * unit,
        picked[ACCURACY],
        facecolors="none",
        edgecolors=CHOSEN,
        s=150,
        linewidths=2,
        label="chosen",
        zorder=4,
    )
    for name, value in baselines.items():
        axes.axhline(value, color=BASELINE, linewidth=0.8, linestyle="--")
        axes.annotate(
            name, (0.01, value), xycoords=("axes fraction", "data"), fontsize=8, va="bottom"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that no cheaper one equals in accuracy, from cheap to dear."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def write_page(
    directory: Path,
    rows: Sequence[Row],
    teacher: Row,
    baselines: Mapping[str, float],
    *,
    chosen: str,
    rule: str,
) -> None:
    """Writes frontier.html, one file that needs no other, beside frontier.png."""
    picture = base64.b64encode((directory / "frontier.png").read_bytes()).decode()
    ordered = sorted(rows, key=lambda row: (not row["on_front"], row[SIZE]))
    body = "\n".join(_line(row, chosen) for row in [teacher, *ordered])
    lines = "".join(
        f"<tr><td>{html.escape(name)}<td class=n>{value:.4f}<td colspan=5></tr>"
        for name, value in baselines.items()
    )
    heads = "".join(f"<th>{name}" for name in COLUMNS)
    (directory / "frontier.html").write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Frontier</title>{STYLE}"
        f"<h1>Accuracy, bytes, milliseconds</h1>"
        f"<p>Chosen: <b>{html.escape(chosen)}</b> ({html.escape(rule)}; the point is chosen by "
        f"validation, test is shown beside it). Full ranking, seen items removed.</p>"
        f'<img alt="frontier" src="data:image/png;base64,{picture}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}{lines}</tbody></table></html>"
    )


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "point": lambda row: html.escape(row["name"]),
    "NDCG@10 validation": lambda row: f"{row[ACCURACY]:.4f}",
    "NDCG@10 test": lambda row: f"{row['report']['ndcg@10']:.4f}",
    "HR@10 test": lambda row: f"{row['report']['hr@10']:.4f}",
    "size": lambda row: readable_bytes(row[SIZE]),
    "p50 ms": lambda row: f"{row[LATENCY]:.3f}" if row[LATENCY] else "-",
    "config and report": lambda row: _details(row),
}
STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}
img{max-width:100%}table{border-collapse:collapse;width:100%}
td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums}
tr.off{color:#777}tr.chosen{background:#fff3d6}pre{white-space:pre-wrap;font-size:12px}
</style>"""


def _line(row: Row, chosen: str) -> str:
    state = "chosen" if row["name"] == chosen else "" if row.get("on_front", True) else "off"
    cells = "".join(
        f"<td{'' if name in ('point', 'config and report') else ' class=n'}>{show(row)}"
        for name, show in COLUMNS.items()
    )
    return f'<tr class="{state}">{cells}</tr>'


def _details(row: Row) -> str:
    content = json.dumps({"config": row["config"], "report": row["report"]}, indent=1)
    return f"<details><summary>show</summary><pre>{html.escape(content)}</pre></details>"
