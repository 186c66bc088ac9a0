"""RecTools' SASRec: full softmax, the latest window of each user, padded; else its defaults."""

# pyright: reportMissingImports=false

import importlib.metadata
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import rectools.dataset
import torch
from rectools import Columns
from rectools.models import SASRecModel

from benchmarks.systems.work import Done, Watch, Work, read_work, say, validation_ndcg
from recsys.data.sequences import Dataset
from recsys.evaluate.ranking import Scorer

FOREVER = 10_000  # epochs; the watch ends the run


class Told(lightning.Callback):
    """Tells the watch of every step."""

    def __init__(self, watch: Watch, dataset: Dataset):
        self.watch, self.dataset = watch, dataset

    def __deepcopy__(self, memo) -> "Told":
        return self  # RecTools trains with a copy of the trainer

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        score = scorer(pl_module, self.dataset.num_items_with_padding)
        num_targets = int((batch["y"] != 0).sum())
        self.watch.step(num_targets, lambda: validation_ndcg(score, self.dataset))
        pl_module.train()
        if self.watch.done:
            raise Done


def interactions(dataset: Dataset) -> rectools.dataset.Dataset:
    """Returns the training part of all sequences; times are positions."""
    lengths = dataset.train_length_U
    items = [dataset.history(user)[:length] for user, length in enumerate(lengths.tolist())]
    positions = np.concatenate([np.arange(length) for length in lengths])
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(dataset.num_users), lengths),
            Columns.Item: np.concatenate(items).astype(np.int64),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(positions, unit="s"),
        }
    )
    return rectools.dataset.Dataset.construct(frame)


def scorer(module, num_items_with_padding: int) -> Scorer:
    """Returns a function from histories to scores_BV; items not met in training come last."""
    network, preparator = module.torch_model, module.data_preparator
    external = preparator.get_known_item_ids().astype(np.int64)
    internal = preparator.get_known_items_sorted_internal_ids()
    internal_V = np.zeros(num_items_with_padding, np.int64)
    internal_V[external] = internal

    @torch.inference_mode()
    def score(histories: Sequence[np.ndarray], _times: object) -> np.ndarray:
        network.eval()
        history_BL = np.zeros((len(histories), preparator.session_max_len), np.int64)
        for row, history in zip(history_BL, histories, strict=True):
            known = internal_V[history][internal_V[history] > 0][-len(row) :]
            row[len(row) - len(known) :] = known
        table_ND = network.item_model.get_all_embeddings()
        state_BD = network.encode_sessions({"x": torch.from_numpy(history_BL)}, table_ND)[:, -1]
        known_BN = (state_BD @ table_ND[internal].T).numpy()
        shape = (len(histories), num_items_with_padding)
        scores_BV = np.full(shape, known_BN.min() - 1, np.float32)
        scores_BV[:, external] = known_BN
        return scores_BV

    return score


def main(work: Work) -> None:
    """Trains as `work` says."""
    torch.set_num_threads(work.num_threads)
    lightning.seed_everything(work.seed, verbose=False)
    dataset = Dataset.open(work.dataset)
    frame = interactions(dataset)
    watch = Watch(work.goal)

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=FOREVER,
            callbacks=[Told(watch, dataset)],
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
            devices=1,
        )

    model = SASRecModel(
        n_factors=work.width,  # of the feed-forward networks, too
        n_blocks=work.num_layers,
        n_heads=work.num_heads,
        session_max_len=work.length,
        loss="softmax",
        get_trainer_func=trainer,
    )
    with suppress(Done):
        model.fit(frame)
    versions = {name: importlib.metadata.version(name) for name in ("rectools", "torch", "numpy")}
    say({**watch.result(), "versions": versions})


if __name__ == "__main__":
    main(read_work())
