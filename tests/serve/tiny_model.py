"""A model directory small enough to know its answers: the score of item j after item i is 10 i + j.

Run as `python tiny_model.py DIRECTORY`.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from recsys.checkpoint import Origin, save_model, seal_model

NUM_ITEMS = 6
MAX_LENGTH = 3


def write_model(directory: Path, *, sign: float = 1.0, num_items: int = NUM_ITEMS) -> Path:
    """Writes the model and returns its directory; items are "a", "b", ... and "a" is most popular.

    With `sign` -1 every list is in the reverse order.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ids = [None, *(chr(ord("a") + i) for i in range(num_items))]
    popularity = pa.array([0, *range(num_items, 0, -1)], pa.int64())
    items = directory / "given.parquet"
    pq.write_table(pa.table({"item_id": pa.array(ids), "popularity": popularity}), items)
    config = {"kind": "TinyConfig", "sign": sign}
    save_model(directory, config=config, weights={}, items=items, origin=Origin(role="student"))
    items.unlink()
    onnx.save(_graph(sign, num_items), directory / "model.onnx")
    seal_model(directory)
    return directory


def _graph(sign: float, num_items: int) -> onnx.ModelProto:
    index_V = np.arange(num_items + 1, dtype=np.float32)
    table_VV = sign * (10 * index_V[:, None] + index_V[None, :]).astype(np.float32)
    table_VV[:, 0] = -np.inf
    constants = {
        "table_VV": table_VV,
        "one": np.array([1], np.int64),
        "minus_infinity": np.array(-np.inf, np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["length_B", "one"], ["last_B"]),
        helper.make_node("Unsqueeze", ["last_B", "one"], ["last_B1"]),
        helper.make_node("GatherElements", ["history_BL", "last_B1"], ["item_B1"], axis=1),
        helper.make_node("Squeeze", ["item_B1", "one"], ["item_B"]),
        helper.make_node("Gather", ["table_VV", "item_B"], ["raw_BV"]),
        helper.make_node("Shape", ["history_BL"], ["shape_BL"]),
        helper.make_node("Expand", ["minus_infinity", "shape_BL"], ["low_BL"]),
        helper.make_node(
            "ScatterElements", ["raw_BV", "history_BL", "low_BL"], ["unseen_BV"], axis=1
        ),
        helper.make_node("Where", ["exclude_seen", "unseen_BV", "raw_BV"], ["scores_BV"]),
        helper.make_node("TopK", ["scores_BV", "k"], ["item_scores_BK", "items_BK"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("history_BL", TensorProto.INT64, ["B", "L"]),
            helper.make_tensor_value_info("length_B", TensorProto.INT64, ["B"]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("exclude_seen", TensorProto.BOOL, [1]),
        ],
        [
            helper.make_tensor_value_info("items_BK", TensorProto.INT64, ["B", "K"]),
            helper.make_tensor_value_info("item_scores_BK", TensorProto.FLOAT, ["B", "K"]),
            helper.make_tensor_value_info("scores_BV", TensorProto.FLOAT, ["B", "V"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for key, value in (("max_length", MAX_LENGTH), ("num_items", num_items)):
        model.metadata_props.add(key=key, value=str(value))
    return model


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), sign=float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
