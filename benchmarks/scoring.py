"""What scoring a catalogue costs in every form of the item table: `python -m benchmarks.scoring`.

From one state to the ten best items, on one thread: products with rows of floats and of few bits
and with rows put together from codes, as serving graphs have them; and from codes alone, without
ever having rows: sums of partial scores (PQTopK, `recsys.evaluate.codes`), and in NumPy the same in
the order of the best parts until the rest cannot reach the ten best (RecJPQPrune, Petrov et al.,
arXiv 2505.00560). Items lie in clusters, as trained ones do. Lists are compared with
those of the float rows; of codes with those of the rows that the codes stand for. Rows go to
benchmarks/results/scoring.json; `--readme` writes the table between the markers `scoring` of the
README.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from benchmarks.command import command
from benchmarks.rows import Results, Row, Subject, table, values_of
from recsys.compress.codebook import kmeans
from recsys.compress.graph import IR_VERSION, OPSET
from recsys.compress.quantize import quantize, to_bytes
from recsys.compress.tables import ORT, FloatTable, Graph, QuantizedTable, Table
from recsys.compress.top_k import best, whole_groups
from recsys.evaluate.codes import CodeScorer
from recsys.evaluate.largest import largest
from recsys.models.moving_codes import nearest
from recsys.models.rounding import block_length

BENCHMARK = "scoring"
LIST_LENGTH = 10
NUM_PARTS, NUM_CENTROIDS = 8, 256
ITEMS_OF_A_CLUSTER, SPREAD = 40, 0.5
NUM_OF_KMEANS = 20_000  # items
CODES, PRUNED, ROWS = "codes, summed", "codes, pruned", "codes, as rows"
BITS = {"int8": 8, "int4": 4}
FORMS = ("fp32", *BITS, ROWS, CODES, PRUNED)

Search = Callable[[np.ndarray], np.ndarray]
"""From state_D to the best items_K."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    num_items: tuple[int, ...] = (125_318, 1_000_000, 10_000_000)
    """Sizes of the catalogue."""
    width: int = 32
    """Width of a row (D)."""
    num_queries: int = 50
    """States that are scored, one at a time."""
    again: bool = False
    """Whether what has been measured is measured anew."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is measured."""


class Catalogue(NamedTuple):
    """Items in two forms, and states that ask for some."""

    table_VD: np.ndarray
    codes_VP: np.ndarray
    centroids_PCS: np.ndarray
    states_QD: np.ndarray

    @property
    def coded_VD(self) -> np.ndarray:
        """The rows that the codes stand for."""
        parts = np.arange(NUM_PARTS)
        return self.centroids_PCS[parts, self.codes_VP].reshape(len(self.codes_VP), -1)


def catalogue(num_items: int, width: int, num_queries: int) -> Catalogue:
    """Returns items in clusters, and the same in codes of k-means over some of them."""
    draw = np.random.default_rng(0)
    num_clusters = num_items // ITEMS_OF_A_CLUSTER + 1
    centers_KD = draw.standard_normal((num_clusters, width), dtype=np.float32)
    table_VD = centers_KD[draw.integers(0, num_clusters, num_items)]
    table_VD += SPREAD * draw.standard_normal((num_items, width), dtype=np.float32)
    centroids, codes = [], []
    for part_VS in torch.from_numpy(table_VD).chunk(NUM_PARTS, dim=1):
        some_NS = part_VS[:NUM_OF_KMEANS].contiguous()
        generator = torch.Generator().manual_seed(0)
        centroids_CS, _ = kmeans(some_NS, torch.ones(len(some_NS)), NUM_CENTROIDS, generator)
        centroids.append(centroids_CS)
        codes.append(nearest(part_VS, centroids_CS).to(torch.uint8))
    states_QD = table_VD[draw.integers(0, num_items, num_queries)]
    states_QD += draw.standard_normal((num_queries, width), dtype=np.float32)
    codes_VP, centroids_PCS = torch.stack(codes, dim=1).numpy(), torch.stack(centroids).numpy()
    return Catalogue(table_VD, codes_VP, centroids_PCS, states_QD)


def product(make: Callable[[Graph], Table], width: int, num_items: int) -> Search:
    """Returns the search of a serving graph: the product with a table, and its ten best."""
    graph = Graph()
    bias_V = graph.op("ConstantOfShape", graph.constant([num_items], np.int64))
    scores_BV = make(graph).score(graph, "state_BD", bias_V)
    k = graph.constant([LIST_LENGTH], np.int64)
    _, items_BK = best(graph, whole_groups(graph, scores_BV, num_items), k, num_items)
    graph.name_output(items_BK, "items_BK")
    state = helper.make_tensor_value_info("state_BD", TensorProto.FLOAT, [1, width])
    items = helper.make_tensor_value_info("items_BK", TensorProto.INT64, [1, LIST_LENGTH])
    proto = helper.make_graph(graph.nodes, "scoring", [state], [items], graph.initializers)
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(ORT, 1)],
        ir_version=IR_VERSION,
    )
    session = _session(model)

    def search(state_D: np.ndarray) -> np.ndarray:
        (items_BK,) = session.run(["items_BK"], {"state_BD": state_D[None]})
        return np.asarray(items_BK)[0]

    return search


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def few_bits(table_VD: np.ndarray, bits: int) -> tuple[Search, float]:
    """Returns the search of a table of codes of few bits, and the bytes of the table."""
    codes_VD, scales = quantize(table_VD, bits, block_length(table_VD.shape[1]))
    packed = to_bytes(codes_VD, bits)

    def make(graph: Graph) -> Table:
        names = graph.constant(packed), graph.constant(scales, np.float32)
        return QuantizedTable(*names, shape=table_VD.shape, bits=bits)

    num_items, width = table_VD.shape
    return product(make, width, num_items), packed.nbytes + 4 * scales.size


def partial_scores(state_D: np.ndarray, centroids_PCS: np.ndarray) -> np.ndarray:
    """Returns partial_PC, the score of each vector of each part."""
    return np.einsum("pcs,ps->pc", centroids_PCS, state_D.reshape(NUM_PARTS, -1))


def summed(items: Catalogue) -> Search:
    """Returns PQTopK."""
    # Its row 0 is the padding.
    scorer = CodeScorer(np.concatenate([items.codes_VP[:1], items.codes_VP]))

    def search(state_D: np.ndarray) -> np.ndarray:
        scores_V = scorer.scores(partial_scores(state_D, items.centroids_PCS))
        return largest(scores_V, LIST_LENGTH) - 1

    return search


def pruned(items: Catalogue) -> Search:
    """Returns RecJPQPrune: exact, and most items are never scored where few parts score high."""
    flat_N = items.codes_VP.astype(np.int32) + np.arange(NUM_PARTS) * NUM_CENTROIDS
    order_PV = [np.argsort(items.codes_VP[:, p], kind="stable") for p in range(NUM_PARTS)]
    ends_PC = np.stack(
        [np.bincount(codes_V, minlength=NUM_CENTROIDS).cumsum() for codes_V in items.codes_VP.T]
    )

    def search(state_D: np.ndarray) -> np.ndarray:
        partial_PC = partial_scores(state_D, items.centroids_PCS)
        best_PC = np.argsort(-partial_PC, axis=1)
        reached_P = np.zeros(NUM_PARTS, np.int64)
        parts_P = np.arange(NUM_PARTS)
        found, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        while True:
            rest_P = partial_PC[parts_P, best_PC[parts_P, reached_P]]
            # No item that was in none of the groups can have more than the best of what is left.
            if len(scores) == LIST_LENGTH and rest_P.sum() <= scores.min():
                return found[np.argsort(-scores)]
            part = int(np.argmax(rest_P))
            code = best_PC[part, reached_P[part]]
            end = ends_PC[part, code]
            start = ends_PC[part, code - 1] if code else 0
            group_N = order_PV[part][start:end]
            group_scores_N = partial_PC.ravel()[flat_N[group_N]].sum(axis=1)
            found, first = np.unique(np.concatenate([found, group_N]), return_index=True)
            scores = np.concatenate([scores, group_scores_N])[first]
            if len(scores) > LIST_LENGTH:
                best_K = np.argpartition(scores, -LIST_LENGTH)[-LIST_LENGTH:]
                found, scores = found[best_K], scores[best_K]
            reached_P[part] += 1
            if reached_P[part] == NUM_CENTROIDS:  # of a part all items are scored
                return found[np.argsort(-scores)]

    return search


def search_of(form: str, items: Catalogue) -> tuple[Search, float]:
    """Returns a form's search, and the bytes of the table that it has."""
    num_items, width = items.table_VD.shape
    match form:
        case "fp32":
            rows = items.table_VD
            search = product(lambda g: FloatTable(g.constant(rows)), width, num_items)
            return search, rows.nbytes
        case "int8" | "int4":
            return few_bits(items.table_VD, BITS[form])
        case "codes, as rows":
            return few_bits(items.coded_VD, 8)
        case "codes, summed":
            return summed(items), items.codes_VP.nbytes
        case "codes, pruned":
            return pruned(items), items.codes_VP.nbytes
    raise ValueError(f"no form {form!r} of a table")


def bytes_per_second() -> float:
    """Returns how fast this machine reads memory that is in no cache, on one thread."""
    values = np.ones(2**26, np.float64)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        values.max()
        seconds.append(time.perf_counter() - started)
    return values.nbytes / min(seconds)


def timed(
    search: Search, states_QD: np.ndarray, expected_QK: np.ndarray
) -> tuple[float, float, float]:
    """Returns p50 and p99 in milliseconds, and the share of the expected items that is found."""
    seconds, shares = [], []
    for state_D in states_QD[:3]:
        search(state_D)
    for state_D, expected_K in zip(states_QD, expected_QK, strict=True):
        started = time.perf_counter()
        found_K = search(state_D)
        seconds.append(time.perf_counter() - started)
        shares.append(len(np.intersect1d(found_K, expected_K)) / LIST_LENGTH)
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return float(p50), float(p99), float(np.mean(shares))


def exact(table_VD: np.ndarray, states_QD: np.ndarray) -> np.ndarray:
    """Returns the ten best items of each state, as a plain product has them."""
    return np.stack([np.argpartition(table_VD @ s, -LIST_LENGTH)[-LIST_LENGTH:] for s in states_QD])


def measure(results: Results, options: Options) -> None:
    """Measures what is not measured yet."""
    for num_items in options.num_items:
        measure_catalogue(results, options, num_items)


def measure_catalogue(results: Results, options: Options, num_items: int) -> None:
    """Measures all forms over one catalogue."""
    line = f"python -m benchmarks.scoring --num-items {num_items} --width {options.width}"
    subjects = {form: Subject(f"{num_items:,} items", "recsys", form, 0) for form in FORMS}
    if not options.again and all(results.has(subject, line) for subject in subjects.values()):
        return
    items = catalogue(num_items, options.width, options.num_queries)
    rate = bytes_per_second()
    exact_QK = exact(items.table_VD, items.states_QD)
    coded_QK = exact(items.coded_VD, items.states_QD)
    for form, subject in subjects.items():
        print(f"{num_items:,} items, {form} ...", file=sys.stderr)
        search, size = search_of(form, items)
        expected_QK = coded_QK if form in (ROWS, CODES, PRUNED) else exact_QK
        p50, p99, recall = timed(search, items.states_QD, expected_QK)
        values = {
            "p50": (p50, "ms"),
            "p99": (p99, "ms"),
            "table_bytes": (float(size), "bytes"),
            "share_of_bandwidth": (size / (p50 / 1000) / rate, ""),
            "recall@10": (recall, ""),
            "bandwidth": (rate, "bytes/s"),
        }
        results.put(subject, line, values)


def markdown(rows: Sequence[Row]) -> str:
    """Returns a line for each form and catalogue."""
    lines = []
    for subject in dict.fromkeys(row.subject for row in rows):
        p50, p99, size, share, recall = (
            values_of(rows, metric, dataset=subject.dataset, variant=subject.variant)[0]
            for metric in ("p50", "p99", "table_bytes", "share_of_bandwidth", "recall@10")
        )
        lines.append(
            [
                f"{subject.dataset}, {subject.variant}",
                f"{size / 2**20:,.1f}",
                f"{p50:.2f}",
                f"{p99:.2f}",
                f"{share:.0%}",
                f"{recall:.3f}",
            ]
        )
    return table(["table", "MiB", "ms, p50", "ms, p99", "of the bandwidth", "recall@10"], lines)


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
