"""A text classifier as ONNX with 8-bit weights, by ONNX Runtime's own quantiser."""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from recsys.checkpoint import GRAPH
from recsys.data.encoders import Tokenizer
from recsys.files import read_json, sha256, write_json
from recsys.models.text import TextClassifier

FACTS = "classifier.json"
EXAMPLES = ["two texts of", "different length, so that both axes of the graph are free"]


class CompressedClassifier:
    """A directory that `compress` wrote, run by ONNX Runtime."""

    def __init__(self, directory: Path):
        """Opens it.

        Raises:
            ValueError: it is not as it was written.
        """
        facts = read_json(directory / FACTS)
        self.path = directory / GRAPH
        expected = facts.get("sha256") if isinstance(facts, dict) else None
        if not self.path.exists() or sha256(self.path) != expected:
            raise ValueError(f"{directory} is not as it was written: compress the classifier again")
        self.categories = tuple(facts["categories"])
        self.tokenizer = Tokenizer(directory, facts["max_tokens"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the graph with its weights, as on disk."""
        return self.path.stat().st_size

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Returns logits_NC, of one text at a time: what is answered together is quantised by one
        scale, and would depend on what it is asked with."""
        logits_NC = np.zeros((len(texts), len(self.categories)), np.float32)
        for logits_C, text in zip(logits_NC, texts, strict=True):
            tokens_1T = self.tokenizer([text]).numpy()
            (logits_1C,) = self.session.run(["logits_NC"], {"tokens_NT": tokens_1T})
            logits_C[:] = np.asarray(logits_1C)[0]
        return logits_NC

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the index of each text's most likely category."""
        return self.logits(texts).argmax(axis=1)


def compress(
    classifier: TextClassifier,
    directory: Path | str,
    precision: Literal["int8", "float32"] = "int8",
) -> CompressedClassifier:
    """Writes a classifier as graph, tokenizer and categories, and returns it opened.

    Weights get unsigned codes: products of unsigned and signed bytes saturate on processors
    without VNNI instructions.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch, _quiet():
        whole = Path(scratch) / GRAPH
        _export(classifier, whole)
        if precision == "int8":
            small = whole.with_suffix(".int8")
            quantize_dynamic(whole, small, weight_type=QuantType.QUInt8)
            whole = small
        (directory / FACTS).unlink(missing_ok=True)  # what is there is whole, or cannot be opened
        whole.replace(directory / GRAPH)
    classifier.tokenizer.save(directory)
    facts = {
        "categories": classifier.categories,
        "max_tokens": classifier.tokenizer.max_tokens,
        "precision": precision,
        "sha256": sha256(directory / GRAPH),
    }
    write_json(directory / FACTS, facts)
    return CompressedClassifier(directory)


def _export(classifier: TextClassifier, path: Path) -> None:
    tokens_NT = classifier.tokenizer(EXAMPLES)
    dims = {0: torch.export.Dim("N"), 1: torch.export.Dim("T")}
    program = torch.onnx.export(
        classifier.eval(),
        (tokens_NT,),
        dynamo=True,
        dynamic_shapes=(dims,),
        input_names=["tokens_NT"],
        output_names=["logits_NC"],
        verbose=False,
    )
    assert program is not None, "dynamo=True gives a program"
    program.save(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what exporter and quantiser say to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
