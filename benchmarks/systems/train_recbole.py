"""RecBole's SASRec: full cross-entropy, every prefix an example; else its defaults.

An example has one target and is computed at all positions: that is RecBole's way, not a choice
made here. Times are positions: RecBole keeps times as float32, which cannot tell seconds apart.
"""

# pyright: reportMissingImports=false

import importlib.metadata
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from benchmarks.systems.work import Done, Watch, Work, read_work, say, validation_ndcg
from recsys.data.batches import pad_histories
from recsys.data.sequences import Dataset
from recsys.evaluate.ranking import Scorer

NAME = "log"
FOREVER = 10_000  # epochs; the watch ends the run


def settings(work: Work, folder: Path) -> dict:
    """Returns RecBole's settings: the work, and what turns off what is not training."""
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "MAX_ITEM_LIST_LENGTH": work.length,
        "hidden_size": work.width,
        "inner_size": work.feed_forward_width,
        "n_layers": work.num_layers,
        "n_heads": work.num_heads,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "epochs": FOREVER,
        "seed": work.seed,
        "reproducibility": False,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
    }


def write_log(dataset: Dataset, folder: Path) -> None:
    """Writes all sequences, of which RecBole holds out the last two items."""
    (folder / NAME).mkdir()
    with (folder / NAME / f"{NAME}.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(dataset.num_users):
            for position, item in enumerate(dataset.history(user).tolist()):
                file.write(f"{user}\t{item}\t{position}\n")


def scorer(model: SASRec, internal_V: np.ndarray, length: int) -> Scorer:
    """Returns a function from histories to scores_BV.

    Args:
        internal_V: RecBole's number of every item.
    """

    @torch.inference_mode()
    def score(histories: Sequence[np.ndarray], _times: object) -> np.ndarray:
        model.eval()
        items = [internal_V[history] for history in histories]
        history_BL, length_B = (torch.from_numpy(array) for array in pad_histories(items, length))
        batch = {model.ITEM_SEQ: history_BL, model.ITEM_SEQ_LEN: length_B}
        return model.full_sort_predict(batch).numpy()[:, internal_V]

    return score


def main(work: Work, folder: Path) -> None:
    """Trains as `work` says, with RecBole's files in `folder`."""
    torch.set_num_threads(work.num_threads)
    dataset = Dataset.open(work.dataset)
    write_log(dataset, folder)
    config = Config(model="SASRec", dataset=NAME, config_dict=settings(work, folder))
    init_seed(work.seed, False)
    theirs = create_dataset(config)
    examples, _, _ = data_preparation(config, theirs)
    model = SASRec(config, examples.dataset)
    names = [str(item) for item in range(1, dataset.num_items_with_padding)]
    internal_V = np.array([0, *theirs.token2id(theirs.iid_field, names)])
    score = scorer(model, internal_V, work.length)
    trainer = Trainer(config, model)
    watch = Watch(work.goal)
    loss = model.calculate_loss
    sizes: list[int] = []

    def counted(interaction):
        sizes.append(len(interaction))
        return loss(interaction)

    def told(*_) -> None:
        watch.step(sizes.pop(), lambda: validation_ndcg(score, dataset))
        model.train()
        if watch.done:
            raise Done

    model.calculate_loss = counted
    trainer.optimizer.register_step_post_hook(told)
    with suppress(Done):
        trainer.fit(examples, saved=False, verbose=False)
    versions = {name: importlib.metadata.version(name) for name in ("recbole", "torch", "numpy")}
    say({**watch.result(), "versions": versions})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(read_work(), Path(directory))
