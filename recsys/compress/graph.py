"""The serving graph of a model in ONNX, built from its weights.

The item table is one initialiser that lookup and scoring share. What a product wants in another
form (a transposed table, a weight of 8 bits as floats, the cosines of all positions) is written
as nodes over constants, which the engine folds once when it loads the file: it costs no bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recsys.compress.quantize import LARGEST_CODE, ZERO_POINT, quantize
from recsys.models import StudentConfig
from recsys.models.gru import GRUConfig
from recsys.models.transformer import TransformerConfig

Precision = Literal["float32", "int8"]
Weights = Mapping[str, np.ndarray]

OPSET, IR_VERSION = 20, 10
ORT = "com.microsoft"
LAYER_NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0


class Graph:
    """Nodes and initialisers in the making; values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Returns the name of a new initialiser."""
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Returns the name of the only output of a new node."""
        return self.split(kind, *inputs, domain=domain, count=1, **attributes)[0]

    def split(
        self, kind: str, *inputs: str, count: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Returns the names of the outputs of a new node."""
        outputs = [f"{kind.lower()}_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs

    def name_output(self, value: str, name: str) -> None:
        """Makes `value` an output of the graph called `name`."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))


class Table(Protocol):
    """An item table in a graph."""

    def lookup(self, graph: Graph, items: str) -> str:
        """Returns the float rows of `items`."""
        ...

    def score(self, graph: Graph, state_BD: str, bias_V: str) -> str:
        """Returns state_BD @ table_VD.T + bias_V."""
        ...


class FloatTable:
    """Rows of float32."""

    def __init__(self, graph: Graph, table_VD: np.ndarray):
        self.rows = graph.constant(table_VD, np.float32)

    def lookup(self, graph: Graph, items: str) -> str:
        return graph.op("Gather", self.rows, items)

    def score(self, graph: Graph, state_BD: str, bias_V: str) -> str:
        return graph.op("Gemm", state_BD, self.rows, bias_V, transB=1)


class Int8Table:
    """Rows of 8-bit codes with a scale each, multiplied by states of 8 bits.

    Every state has its own scale, so that an answer does not depend on who else is in the batch.
    """

    def __init__(self, graph: Graph, table_VD: np.ndarray):
        codes_VD, scale_V1 = quantize(table_VD, axis=1)
        self.codes = graph.constant(codes_VD)
        self.scales = graph.constant(scale_V1[:, 0])

    def lookup(self, graph: Graph, items: str) -> str:
        codes = graph.op("Gather", self.codes, items)
        centred = graph.op(
            "DequantizeLinear",
            codes,
            graph.constant(1, np.float32),
            graph.constant(ZERO_POINT, np.uint8),
        )
        scales = graph.op("Gather", self.scales, items)
        last_axis = graph.constant([-1], np.int64)
        return graph.op("Mul", centred, graph.op("Unsqueeze", scales, last_axis))

    def score(self, graph: Graph, state_BD: str, bias_V: str) -> str:
        codes_BD, scale_B1 = _quantize_rows(graph, state_BD)
        zero_point = graph.constant(ZERO_POINT, np.uint8)
        unscaled_BV = graph.op(
            "MatMulIntegerToFloat",
            codes_BD,
            graph.op("Transpose", self.codes, perm=[1, 0]),
            graph.constant(1, np.float32),
            self.scales,
            zero_point,
            zero_point,
            bias_V,
            domain=ORT,
        )
        return graph.op("Mul", unscaled_BV, scale_B1)


class LowRankTable:
    """A table of codes_VR, held as `codes` says, and a basis_RD; only V x R is stored."""

    def __init__(self, codes: Table, basis_RD: str):
        self.codes = codes
        self.basis_RD = basis_RD

    def lookup(self, graph: Graph, items: str) -> str:
        return graph.op("MatMul", self.codes.lookup(graph, items), self.basis_RD)

    def score(self, graph: Graph, state_BD: str, bias_V: str) -> str:
        state_BR = graph.op("Gemm", state_BD, self.basis_RD, transB=1)
        return self.codes.score(graph, state_BR, bias_V)


class EncoderGraph(ABC):
    """Writes an encoder of `config` and `weights` into a graph."""

    def __init__(self, config: StudentConfig, weights: Weights, precision: Precision):
        self.item_rank = config.item_rank
        self.weights = weights
        self.precision: Precision = precision
        self.graph = Graph()
        self.item_rows = weights[
            f"item_embedding.{'weight' if self.item_rank is None else 'codes_VR'}"
        ]
        self.num_items = len(self.item_rows) - 1
        self.table = self._item_table()

    @abstractmethod
    def state(self, history_BL: str, length_B: str) -> str:
        """Returns state_BD after the last item of right-padded histories."""

    def scores(self, state_BD: str) -> str:
        """Returns scores_BV; those of the padding column are -inf."""
        graph = self.graph
        zeros = graph.op("ConstantOfShape", graph.constant([self.num_items], np.int64))
        infinite = graph.constant([-np.inf], np.float32)
        bias_V = graph.op("Concat", infinite, zeros, axis=0)
        return self.table.score(graph, state_BD, bias_V)

    def _matrix(self, weight_OI: np.ndarray) -> str:
        """Returns the transposed matrix as float32, whatever it is stored as.

        Floating point throughout: at the widths of students products of 8-bit activations are no
        faster, and their scale would depend on the padding and on the rest of the batch.
        """
        if self.precision == "float32":
            return self.graph.constant(np.ascontiguousarray(weight_OI.T), np.float32)
        codes, scales = quantize(np.ascontiguousarray(weight_OI.T), axis=0)
        zero_point = self.graph.constant(ZERO_POINT, np.float32)
        floats = self.graph.op("Cast", self.graph.constant(codes), to=TensorProto.FLOAT)
        centred = self.graph.op("Sub", floats, zero_point)
        return self.graph.op("Mul", centred, self.graph.constant(scales))

    def _norm(self, name: str, x: str) -> str:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        inputs = (x, self.graph.constant(weight), self.graph.constant(bias))
        return self.graph.op("LayerNormalization", *inputs, epsilon=LAYER_NORM_EPSILON)

    def _item_table(self) -> Table:
        kind = FloatTable if self.precision == "float32" else Int8Table
        rows = kind(self.graph, self.item_rows)
        if self.item_rank is None:
            return rows
        return LowRankTable(rows, self._matrix(self.weights["item_embedding.basis_RD"].T))


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
    """
    match config:
        case TransformerConfig():
            builder = TransformerGraph(config, weights, precision)
        case GRUConfig():
            builder = GRUGraph(config, weights, precision)
    graph = builder.graph
    scores_BV = builder.scores(builder.state("history_BL", "length_B"))
    k = graph.op("Min", "k", graph.constant([builder.num_items], np.int64))
    unseen_BV = _without_seen(graph, scores_BV)
    item_scores_BK, items_BK = graph.split("TopK", unseen_BV, k, count=2)
    for value, name in (
        (items_BK, "items_BK"),
        (item_scores_BK, "item_scores_BK"),
        (scores_BV, "scores_BV"),
    ):
        graph.name_output(value, name)
    metadata = {
        "max_length": config.max_length,
        "num_items": builder.num_items,
        "precision": precision,
    }
    return _model(graph, builder.num_items + 1, metadata)


def _without_seen(graph: Graph, scores_BV: str) -> str:
    """Returns the scores with -inf at the items of the history, if exclude_seen says so."""
    seen_BL = graph.op("GatherElements", scores_BV, "history_BL", axis=1)
    infinite = graph.constant(-np.inf, np.float32)
    seen_BL = graph.op("Where", "exclude_seen", infinite, seen_BL)
    return graph.op("ScatterElements", scores_BV, "history_BL", seen_BL, axis=1)


def _quantize_rows(graph: Graph, x_BD: str) -> tuple[str, str]:
    """Returns uint8 codes_BD around 128 and their scale_B1."""
    last_axis = graph.constant([-1], np.int64)
    largest_B1 = graph.op("ReduceMax", graph.op("Abs", x_BD), last_axis, keepdims=1)
    scale_B1 = graph.op("Mul", largest_B1, graph.constant(1 / LARGEST_CODE, np.float32))
    # A state of zeros must not make 0 / 0.
    scale_B1 = graph.op("Max", scale_B1, graph.constant(1e-30, np.float32))
    rounded = graph.op("Round", graph.op("Div", x_BD, scale_B1))
    shifted = graph.op("Add", rounded, graph.constant(ZERO_POINT, np.float32))
    return graph.op("Cast", shifted, to=TensorProto.UINT8), scale_B1


def _model(graph: Graph, num_rows: int, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        graph.nodes,
        "recommender",
        [
            value("history_BL", TensorProto.INT64, ["B", "L"]),
            value("length_B", TensorProto.INT64, ["B"]),
            value("k", TensorProto.INT64, [1]),
            value("exclude_seen", TensorProto.BOOL, [1]),
        ],
        [
            value("items_BK", TensorProto.INT64, ["B", "K"]),
            value("item_scores_BK", TensorProto.FLOAT, ["B", "K"]),
            value("scores_BV", TensorProto.FLOAT, ["B", num_rows]),
        ],
        graph.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ORT, 1)]
    model = helper.make_model(
        proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="recsys"
    )
    helper.set_model_props(model, {key: str(v) for key, v in metadata.items()})
    return model
