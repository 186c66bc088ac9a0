"""A graph in the making, and the forms that an item table takes in it."""

from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recsys.models.item_table import NUM_CENTROIDS
from recsys.models.rounding import block_length

ORT = "com.microsoft"
INT8_STATES = 4  # accuracy_level of MatMulNBits: states are rounded to 8 bits for the product


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
        """Makes a node's output an output of the graph, called `name` from now on.

        A copy of it would take time.
        """
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [name if known == value else known for known in names]


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

    def __init__(self, rows: str):
        self.rows = rows

    def lookup(self, graph: Graph, items: str) -> str:
        return graph.op("Gather", self.rows, items)

    def score(self, graph: Graph, state_BD: str, bias_V: str) -> str:
        return graph.op("Gemm", state_BD, self.rows, bias_V, transB=1)


class QuantizedTable:
    """Rows of codes of 8 or 4 bits, with a scale for every block of a row.

    The product rounds a state to 8 bits block by block, so that an answer does not depend on who
    else is in the batch.
    """

    def __init__(self, codes: str, scales: str, *, shape: tuple[int, int], bits: int):
        """Takes what the graph has.

        Args:
            codes: as `to_bytes` gives them.
            scales: float32, (V, blocks), of blocks as long as `block_length` says.
            shape: V and D.
        """
        self.codes, self.scales, self.bits = codes, scales, bits
        self.num_rows, self.width = shape
        self.block = block_length(self.width)

    def lookup(self, graph: Graph, items: str) -> str:
        rows = graph.op(
            "GatherBlockQuantized",
            self.codes,
            items,
            self.scales,
            domain=ORT,
            bits=self.bits,
            block_size=self.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if self.bits == 4 and self.width % 2:
            start, end, axis = (graph.constant([at], np.int64) for at in (0, self.width, -1))
            return graph.op("Slice", rows, start, end, axis)
        return rows

    def score(self, graph: Graph, state_BD: str, bias_V: str) -> str:
        per_byte = 8 // self.bits
        shape = [self.num_rows, num_blocks(self.width), self.block // per_byte]
        missing = shape[1] * shape[2] - -(-self.width // per_byte)
        padded = graph.op("Pad", self.codes, graph.constant([0, 0, 0, missing], np.int64))
        return graph.op(
            "MatMulNBits",
            state_BD,
            graph.op("Reshape", padded, graph.constant(shape, np.int64)),
            self.scales,
            "",
            "",
            bias_V,
            domain=ORT,
            K=self.width,
            N=self.num_rows,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=INT8_STATES,
        )


class ScaledTable:
    """A table whose columns have a scale each."""

    def __init__(self, columns: Table, scale_D: str):
        self.columns = columns
        self.scale_D = scale_D

    def lookup(self, graph: Graph, items: str) -> str:
        return graph.op("Mul", self.columns.lookup(graph, items), self.scale_D)

    def score(self, graph: Graph, state_BD: str, bias_V: str) -> str:
        return self.columns.score(graph, graph.op("Mul", state_BD, self.scale_D), bias_V)


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


class CodeTable:
    """Rows that are never put together: codes of 8 bits, and the vectors that they stand for."""

    def __init__(self, codes_VP: str, vectors_PSC: str, *, num_parts: int, width: int):
        self.codes_VP = codes_VP
        self.vectors_PSC = vectors_PSC
        self.num_parts = num_parts
        self.width = width

    def lookup(self, graph: Graph, items_BL: str) -> str:
        """Returns the float rows of `items_BL`; that of the padding is zero."""
        codes_BLP = graph.op("Gather", self.codes_VP, items_BL)
        first_P = graph.constant(np.arange(self.num_parts) * NUM_CENTROIDS, np.int32)
        vector_BLP = graph.op("Add", graph.op("Cast", codes_BLP, to=TensorProto.INT32), first_P)
        vectors_PCS = graph.op("Transpose", self.vectors_PSC, perm=[0, 2, 1])
        vectors_NS = graph.op("Flatten", vectors_PCS, axis=2)
        parts_BLPS = graph.op("Gather", vectors_NS, vector_BLP)
        rows_BLD = graph.op("Reshape", parts_BLPS, graph.constant([0, 0, self.width], np.int64))
        is_item_BL1 = graph.op("Unsqueeze", items_BL, graph.constant([2], np.int64))
        is_item_BL1 = graph.op("Cast", is_item_BL1, to=TensorProto.BOOL)
        return graph.op("Where", is_item_BL1, rows_BLD, graph.constant(0, np.float32))

    def partial_scores(self, graph: Graph, state_BD: str) -> str:
        """Returns partial_BPC, what each code of each part adds to a score."""
        size = [0, self.num_parts, 1, self.width // self.num_parts]
        shape = graph.constant(size, np.int64)
        state_BP1S = graph.op("Reshape", state_BD, shape)
        partial_BP1C = graph.op("MatMul", state_BP1S, self.vectors_PSC)
        return graph.op("Squeeze", partial_BP1C, graph.constant([2], np.int64))


def num_blocks(width: int) -> int:
    """Returns how many scales a row of the item table has."""
    return -(-width // block_length(width))
