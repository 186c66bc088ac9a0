"""The serving graph of a model in ONNX, built from its weights.

The item table is one initialiser that lookup and scoring share. What a product wants in another
form (a transposed table, a weight of few bits as floats, rows put together from codes, the cosines
of all positions) is written as nodes over constants, which the engine folds once when it loads the
file: it costs no bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recsys.compress.quantize import quantize, to_bytes
from recsys.compress.tables import (
    ORT,
    CodeTable,
    FloatTable,
    Graph,
    LowRankTable,
    QuantizedTable,
    ScaledTable,
    Table,
    num_blocks,
)
from recsys.compress.top_k import best, whole_groups, without_seen
from recsys.models import StudentConfig, num_rows
from recsys.models.gru import GRUConfig
from recsys.models.item_table import NUM_CENTROIDS
from recsys.models.rounding import block_length, group_length
from recsys.models.transformer import TransformerConfig

Precision = Literal["float32", "float16", "int8", "int4"]
Weights = Mapping[str, np.ndarray]

OPSET, IR_VERSION = 21, 10
LAYER_NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0
BITS: dict[Precision, int] = {"int8": 8, "int4": 4}
ITEM_TABLE = "item_embedding."
ROWS_SCORED_BY_CODES = 1 << 19
"""How many rows of codes are scored outside the graph, by `recsys.evaluate.codes`: from there on
that takes no more time for one history than rows of 8 bits, and a quarter of their memory."""
Axes = list[str | int]
INPUTS: dict[str, tuple[int, Axes]] = {
    "history_BL": (TensorProto.INT64, ["B", "L"]),
    "length_B": (TensorProto.INT64, ["B"]),
    "k": (TensorProto.INT64, [1]),
    "exclude_seen": (TensorProto.BOOL, [1]),
}


class EncoderGraph(ABC):
    """Writes an encoder of `config` and `weights` into a graph."""

    def __init__(self, config: StudentConfig, weights: Weights, precision: Precision):
        self.weights = weights
        self.precision: Precision = precision
        self.graph = Graph()
        self.item_weights = {
            name.removeprefix(ITEM_TABLE): weight
            for name, weight in weights.items()
            if name.startswith(ITEM_TABLE)
        }
        self.num_items = num_rows(weights) - 1
        self.table = self._item_table()

    @abstractmethod
    def state(self, history_BL: str, length_B: str) -> str:
        """Returns state_BD after the last item of right-padded histories."""

    def outputs(self, state_BD: str) -> dict[str, tuple[str, int, Axes]]:
        """Returns value, type and axes of what the graph answers, by name."""
        graph, table, num_rows = self.graph, self.table, self.num_items + 1
        if isinstance(table, CodeTable):
            parts = table.num_parts
            partial_BPC = table.partial_scores(graph, state_BD)
            codes_VP = graph.op("Identity", table.codes_VP)
            return {
                "partial_BPC": (partial_BPC, TensorProto.FLOAT, ["B", parts, NUM_CENTROIDS]),
                "codes_VP": (codes_VP, TensorProto.UINT8, [num_rows, parts]),
            }
        scores_BV = self._scores(table, state_BD)
        k = graph.op("Min", "k", graph.constant([self.num_items], np.int64))
        unseen_BV = without_seen(graph, whole_groups(graph, scores_BV, num_rows))
        item_scores_BK, items_BK = best(graph, unseen_BV, k, num_rows)
        return {
            "items_BK": (items_BK, TensorProto.INT64, ["B", "K"]),
            "item_scores_BK": (item_scores_BK, TensorProto.FLOAT, ["B", "K"]),
            "scores_BV": (scores_BV, TensorProto.FLOAT, ["B", num_rows]),
        }

    def _scores(self, table: Table, state_BD: str) -> str:
        """Returns scores_BV; those of the padding column are -inf."""
        graph = self.graph
        zeros = graph.op("ConstantOfShape", graph.constant([self.num_items], np.int64))
        infinite = graph.constant([-np.inf], np.float32)
        bias_V = graph.op("Concat", infinite, zeros, axis=0)
        return table.score(graph, state_BD, bias_V)

    def _matrix(self, weight_OI: np.ndarray) -> str:
        """Returns the transposed matrix as float32, whatever it is stored as.

        Floating point throughout: at the widths of students products of 8-bit activations are no
        faster, and their scale would depend on the padding and on the rest of the batch.
        """
        bits = BITS.get(self.precision)
        if bits is None:
            return self._floats(weight_OI.T)
        num_outputs, num_inputs = weight_OI.shape
        block = group_length(num_inputs, bits)
        codes_OI, scales = quantize(weight_OI, bits, block)
        blocks = codes_OI.reshape(num_outputs, -1, block)
        codes = self.graph.constant(blocks, ml_dtypes.int4 if bits == 4 else np.int8)
        floats = self.graph.op("Cast", codes, to=TensorProto.FLOAT)
        scaled = self.graph.op("Mul", floats, self._floats(scales[..., None]))
        return self.graph.op("Transpose", self.graph.op("Flatten", scaled, axis=1), perm=[1, 0])

    def _floats(self, weight: np.ndarray) -> str:
        """Returns float32 that is stored in half precision, unless all is to be float32."""
        if self.precision == "float32":
            return self.graph.constant(np.ascontiguousarray(weight), np.float32)
        half = self.graph.constant(np.ascontiguousarray(weight), np.float16)
        return self.graph.op("Cast", half, to=TensorProto.FLOAT)

    def _norm(self, name: str, x: str) -> str:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        inputs = (x, self.graph.constant(weight), self.graph.constant(bias))
        return self.graph.op("LayerNormalization", *inputs, epsilon=LAYER_NORM_EPSILON)

    def _item_table(self) -> Table | CodeTable:
        weights = self.item_weights
        if "centroids_PCS" in weights:
            return self._codebook(weights["codes_VP"], weights["centroids_PCS"])
        if "basis_RD" in weights:
            return LowRankTable(
                self._rows(weights["codes_VR"]), self._matrix(weights["basis_RD"].T)
            )
        return self._rows(weights["weight"])

    def _rows(self, table_VD: np.ndarray) -> Table:
        bits = BITS.get(self.precision)
        if bits is None:
            return FloatTable(self._floats(table_VD))
        codes_VD, scales = quantize(table_VD, bits, block_length(table_VD.shape[1]))
        codes = self.graph.constant(to_bytes(codes_VD, bits))
        return QuantizedTable(codes, self._floats(scales), shape=table_VD.shape, bits=bits)

    def _codebook(self, codes_VP: np.ndarray, centroids_PCS: np.ndarray) -> Table | CodeTable:
        """Returns a table of codes, or where there are not many, one whose rows are put together
        when the file is loaded.

        The engine has no operator for adding up partial scores by codes (PQTopK, arXiv 2408.09992):
        written out with GatherElements it took up to seven times as long as the product with the
        rows, and at 8 codes never less, for three and for a hundred thousand items alike. Vectors
        have 8 bits and a scale for each column where other weights have 8 or 4.
        """
        num_parts = len(centroids_PCS)
        columns_DC = centroids_PCS.transpose(0, 2, 1).reshape(-1, NUM_CENTROIDS)
        shape = (len(codes_VP), len(columns_DC))
        if shape[0] >= ROWS_SCORED_BY_CODES:
            vectors_PSC = self._vectors(columns_DC, num_parts)
            codes = self.graph.constant(codes_VP)
            return CodeTable(codes, vectors_PSC, num_parts=num_parts, width=shape[1])
        if self.precision not in BITS:
            vectors = self._floats(centroids_PCS.reshape(num_parts * NUM_CENTROIDS, -1))
            return FloatTable(self._assemble(codes_VP, vectors, shape[1], np.float32(0)))
        codes_DC, scale_D1 = quantize(columns_DC, 8, NUM_CENTROIDS)
        vectors_PSC = to_bytes(codes_DC, 8).reshape(num_parts, -1, NUM_CENTROIDS)
        vectors_NS = vectors_PSC.transpose(0, 2, 1).reshape(num_parts * NUM_CENTROIDS, -1)
        vectors = self.graph.constant(np.ascontiguousarray(vectors_NS))
        zero = to_bytes(np.zeros((1, 1), np.int8), 8)[0, 0]
        rows = self._assemble(codes_VP, vectors, shape[1], zero)
        scales = self._filled([shape[0], num_blocks(shape[1])], np.float32(1))
        columns = QuantizedTable(rows, scales, shape=shape, bits=8)
        return ScaledTable(columns, self._floats(scale_D1[:, 0]))

    def _vectors(self, columns_DC: np.ndarray, num_parts: int) -> str:
        """Returns the float vectors_PSC that codes stand for, whatever they are stored as."""
        if self.precision not in BITS:
            columns = self._floats(columns_DC)
        else:
            codes_DC, scale_D1 = quantize(columns_DC, 8, NUM_CENTROIDS)
            codes = self.graph.op("Cast", self.graph.constant(codes_DC), to=TensorProto.FLOAT)
            columns = self.graph.op("Mul", codes, self._floats(scale_D1))
        shape = self.graph.constant([num_parts, -1, NUM_CENTROIDS], np.int64)
        return self.graph.op("Reshape", columns, shape)

    def _assemble(self, codes_VP: np.ndarray, vectors: str, width: int, zero: np.generic) -> str:
        """Returns the rows that codes stand for; that of the padding is filled with `zero`."""
        graph = self.graph
        codes = graph.op("Cast", graph.constant(codes_VP[1:]), to=TensorProto.INT32)
        first_P = graph.constant(np.arange(codes_VP.shape[1]) * NUM_CENTROIDS, np.int32)
        parts = graph.op("Gather", vectors, graph.op("Add", codes, first_P))
        padding = self._filled([1, width], zero)
        return graph.op("Concat", padding, graph.op("Flatten", parts, axis=1), axis=0)

    def _filled(self, shape: list[int], value: np.generic) -> str:
        """Returns an array of one value, which takes no bytes in the file."""
        tensor = numpy_helper.from_array(value.reshape(1))
        return self.graph.op("ConstantOfShape", self.graph.constant(shape, np.int64), value=tensor)


class TransformerGraph(EncoderGraph):
    """Writes a transformer into a graph."""

    def __init__(self, config: TransformerConfig, weights: Weights, precision: Precision):
        super().__init__(config, weights, precision)
        self.config = config
        self.rotary = self._rotary_tables()

    def state(self, history_BL: str, length_B: str) -> str:
        x_BLD = self._norm("embedding_norm", self.table.lookup(self.graph, history_BL))
        for layer in range(self.config.num_layers - 1):
            x_BLD = self._block(f"blocks.{layer}", x_BLD)
        x_B1D = self._last_block(f"blocks.{self.config.num_layers - 1}", x_BLD, length_B)
        x_BD = self.graph.op("Squeeze", x_B1D, self.graph.constant([1], np.int64))
        return self._norm("norm", x_BD)

    def _block(self, block: str, x_BLD: str) -> str:
        normed = self._norm(f"{block}.norm_1", x_BLD)
        start = self.graph.constant([0], np.int64)
        query, key, value = self._projections(block, normed, ("query", "key", "value"))
        query, key = self._rotate(query, start), self._rotate(key, start)
        mixed = self._attend(query, key, value, unidirectional=1)
        return self._residual(block, x_BLD, mixed)

    def _last_block(self, block: str, x_BLD: str, length_B: str) -> str:
        """Returns the block's output (B, 1, D) for the last position, the only one needed."""
        graph = self.graph
        normed = self._norm(f"{block}.norm_1", x_BLD)
        key, value = self._projections(block, normed, ("key", "value"))
        key = self._rotate(key, graph.constant([0], np.int64))
        last_B = graph.op("Sub", length_B, graph.constant(1, np.int64))
        last_B1 = graph.op("Unsqueeze", last_B, graph.constant([1], np.int64))
        last_B11 = graph.op("Unsqueeze", last_B, graph.constant([1, 2], np.int64))
        x_B1D = graph.op("GatherND", x_BLD, last_B11, batch_dims=1)
        normed = graph.op("GatherND", normed, last_B11, batch_dims=1)
        query = self._rotate(self._linear(f"{block}.query", normed), last_B1)
        length_B = graph.op("Cast", length_B, to=TensorProto.INT32)
        mixed = self._attend(query, key, value, "", length_B)
        return self._residual(block, x_B1D, mixed)

    def _residual(self, block: str, x_BLD: str, mixed: str) -> str:
        x_BLD = self.graph.op("Add", x_BLD, self._linear(f"{block}.output", mixed))
        hidden = self._linear(f"{block}.expand", self._norm(f"{block}.norm_2", x_BLD))
        hidden = self.graph.op("Gelu", hidden)
        return self.graph.op("Add", x_BLD, self._linear(f"{block}.contract", hidden))

    def _attend(
        self, query: str, key: str, value: str, *masks: str, unidirectional: int = 0
    ) -> str:
        return self.graph.op(
            "MultiHeadAttention",
            query,
            key,
            value,
            *masks,
            domain=ORT,
            num_heads=self.config.num_heads,
            unidirectional=unidirectional,
        )

    def _rotate(self, x_BLE: str, positions: str) -> str:
        return self.graph.op("RotaryEmbedding", x_BLE, positions, *self.rotary, domain=ORT)

    def _projections(self, block: str, x: str, names: tuple[str, ...]) -> list[str]:
        """Returns several linear maps of `x`, as one product where they are dense."""
        full_names = [f"{block}.{name}" for name in names]
        if self.config.linear_rank is not None:
            return [self._linear(name, x) for name in full_names]
        weight = np.concatenate([self.weights[f"{name}.weight"] for name in full_names])
        product = self.graph.op("MatMul", x, self._matrix(weight))
        count = len(names)
        return self.graph.split("Split", product, count=count, num_outputs=count, axis=-1)

    def _linear(self, name: str, x: str) -> str:
        parts = ("down", "up") if self.config.linear_rank is not None else ()
        for weight in [f"{name}.{part}.weight" for part in parts] or [f"{name}.weight"]:
            x = self.graph.op("MatMul", x, self._matrix(self.weights[weight]))
        return x

    def _rotary_tables(self) -> tuple[str, str]:
        """Returns cosines and sines of all positions, (max_length, head_width / 2)."""
        half = self.config.head_width // 2
        frequencies = ROTARY_BASE ** (-np.arange(half, dtype=np.float32) / half)
        positions = np.arange(self.config.max_length, dtype=np.float32)[:, None]
        angles = self.graph.op(
            "Mul", self.graph.constant(positions), self.graph.constant(frequencies, np.float32)
        )
        return self.graph.op("Cos", angles), self.graph.op("Sin", angles)


class GRUGraph(EncoderGraph):
    """Writes a recurrent encoder into a graph."""

    def __init__(self, config: GRUConfig, weights: Weights, precision: Precision):
        super().__init__(config, weights, precision)
        self.config = config

    def state(self, history_BL: str, length_B: str) -> str:
        graph = self.graph
        length_B = graph.op("Cast", length_B, to=TensorProto.INT32)
        x_BLD = self._norm("embedding_norm", self.table.lookup(graph, history_BL))
        x_LBD = graph.op("Transpose", x_BLD, perm=[1, 0, 2])
        directions = graph.constant([1], np.int64)  # the operator's axis of forward and backward
        state = ""
        for layer in range(self.config.num_layers):
            states_L1BH, state = self._layer(layer, x_LBD, length_B)
            x_LBD = graph.op("Squeeze", states_L1BH, directions)
        state_BH = graph.op("Squeeze", state, graph.constant([0], np.int64))
        output = graph.op("MatMul", state_BH, self._matrix(self.weights["output.weight"]))
        return self._norm("norm", output)

    def _layer(self, layer: int, x_LBD: str, length_B: str) -> list[str]:
        """Returns all states and the last one of each history, each with an axis of directions."""
        graph = self.graph
        first_axis = graph.constant([0], np.int64)
        matrices = [
            graph.op(
                "Unsqueeze",
                graph.op("Transpose", self._matrix(self._gates(f"{name}_l{layer}")), perm=[1, 0]),
                first_axis,
            )
            for name in ("weight_ih", "weight_hh")
        ]
        biases = [self._gates(f"{name}_l{layer}") for name in ("bias_ih", "bias_hh")]
        bias_1G = graph.constant(np.concatenate(biases)[None], np.float32)
        return graph.split(
            "GRU",
            x_LBD,
            *matrices,
            bias_1G,
            length_B,
            count=2,
            hidden_size=self.config.hidden_width,
            linear_before_reset=1,
        )

    def _gates(self, name: str) -> np.ndarray:
        """Returns a weight with its gates in the operator's order: update before reset."""
        reset, update, new = np.split(self.weights[f"layers.{name}"], 3)
        return np.concatenate([update, reset, new])


def serving_graph(config: StudentConfig, weights: Weights, precision: Precision) -> onnx.ModelProto:
    """Returns the graph from histories to the best items.

    Inputs: history_BL (right-padded with 0), length_B (at least 1), k and exclude_seen (one value
    each). Outputs: items_BK and item_scores_BK, and scores_BV of the whole catalogue with the seen
    items in it and the padding column at -inf. Asked for more than there are, it returns all.

    A graph of very many items that have codes (`ROWS_SCORED_BY_CODES`) lacks k and exclude_seen;
    its outputs are partial_BPC, what each code adds to a score, and codes_VP.
    """
    match config:
        case TransformerConfig():
            builder = TransformerGraph(config, weights, precision)
        case GRUConfig():
            builder = GRUGraph(config, weights, precision)
    graph = builder.graph
    outputs = builder.outputs(builder.state("history_BL", "length_B"))
    for name, (value, _, _) in outputs.items():
        graph.name_output(value, name)
    used = {name for node in graph.nodes for name in node.input}
    info = helper.make_tensor_value_info
    proto = helper.make_graph(
        graph.nodes,
        "recommender",
        [info(name, *kind) for name, kind in INPUTS.items() if name in used],
        [info(name, kind, axes) for name, (_, kind, axes) in outputs.items()],
        graph.initializers,
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(ORT, 1)],
        ir_version=IR_VERSION,
        producer_name="recsys",
    )
    metadata = {
        "max_length": config.max_length,
        "num_items": builder.num_items,
        "precision": precision,
    }
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    return model
