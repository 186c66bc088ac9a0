import contextlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.checkpoint import Origin
from recsys.data.batches import Batches, first_rows
from recsys.distill import targets as module
from recsys.distill.answers import TargetsConfig
from recsys.distill.objective import Distillation, DistillConfig
from recsys.distill.targets import Targets, require_room, write_targets
from recsys.models import TransformerConfig, build, save
from recsys.models.interface import torch_scorer
from recsys.train.objective import seen_items, to_tensors

TOP_K = 5
MODEL = TransformerConfig(
    width=16, num_layers=1, num_heads=2, head_width=8, feed_forward_width=32, max_length=8
)

EVERYTHING = TargetsConfig(top_k=TOP_K, num_sampled=6, vectors=True)


def batches_of(dataset):
    return Batches(dataset, num_rows=4, length=8, seed=0, epoch=0)


@pytest.fixture
def teacher(dataset):
    torch.manual_seed(0)
    return build(MODEL, dataset.num_items_with_padding).eval()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "USERS_PER_SHARD", 25)


@pytest.mark.parametrize("leave_out_seen", [True, False])
def test_every_position_has_the_teachers_own_answer(dataset, teacher, leave_out_seen, tmp_path):
    config = replace(EVERYTHING, leave_out_seen=leave_out_seen)
    write_targets(teacher, dataset, tmp_path, config)
    targets = Targets(tmp_path)
    first = first_rows(dataset)
    assert len(targets) == first[-1]
    score = torch_scorer(teacher)
    num_items = dataset.num_items_with_padding - 1
    for user in range(dataset.num_users):
        for position in range(min(int(dataset.train_length_U[user]) - 1, MODEL.max_length)):
            history = dataset.history(user)[: position + 1]
            scores_V = score([history])[0].astype(np.float64)
            target = dataset.history(user)[position + 1]
            target_score = scores_V[target]
            scores_V[0] = -np.inf
            if leave_out_seen:
                scores_V[history] = -np.inf
            logs_V = scores_V - np.log(np.exp(scores_V).sum())
            found = targets.look_up(np.array([first[user] + position])).answers()
            answers = type(found)(*(value[0].numpy() for value in found))
            best_K = np.sort(logs_V)[::-1][:TOP_K]
            np.testing.assert_allclose(answers.logs_NK, best_K, atol=2e-3)
            np.testing.assert_allclose(logs_V[answers.items_NK], best_K, atol=2e-3)
            log_of_target = logs_V[target] + target_score - scores_V[target]
            assert answers.target_logs_N == pytest.approx(log_of_target, abs=2e-3)
            assert (answers.sampled_NM >= 1).all()
            assert (answers.sampled_NM <= num_items).all()
            logs_V[answers.items_NK] = -np.inf
            np.testing.assert_allclose(
                answers.sampled_logs_NM, logs_V[answers.sampled_NM], atol=2e-3
            )
            np.testing.assert_allclose(
                targets.item_vectors().float().numpy()[1:] @ answers.states_NE,
                score([history])[0][1:],
                atol=5e-3,
            )


def test_probabilities_of_a_sample_add_up_to_the_rest_of_the_catalogue(dataset, teacher, tmp_path):
    write_targets(teacher, dataset, tmp_path, replace(EVERYTHING, num_sampled=64))
    answers = Targets(tmp_path).look_up(np.arange(first_rows(dataset)[-1])).answers()
    best_N = answers.logs_NK.exp().sum(dim=1)
    stands_for = (dataset.num_items_with_padding - 1) / 64
    rest_N = answers.sampled_logs_NM.exp().sum(dim=1) * stands_for
    assert (best_N + rest_N).mean() == pytest.approx(1, abs=0.01)


def test_long_sequences_are_answered_once_with_at_least_half_a_window(dataset):
    length = MODEL.max_length
    users = (0, dataset.num_users)
    batches = list(module._teacher_batches(dataset, users, length))
    rows = np.concatenate([batch.rows_BL[batch.rows_BL >= 0] for batch in batches])
    local = np.concatenate([batch.positions_BL[batch.rows_BL >= 0] for batch in batches])
    first = first_rows(dataset)
    np.testing.assert_array_equal(np.sort(rows), np.arange(first[-1]))
    position = rows - first[np.searchsorted(first, rows, side="right") - 1]
    assert (position >= length).any()
    assert (local >= np.minimum(position, length // 2 - 1)).all()


@pytest.mark.usefixtures("ray_started")
def test_workers_write_what_one_process_writes_and_say_nothing(
    dataset, dataset_directory, teacher, tmp_path, capfd
):
    from recsys.distill.on_ray import write_targets_on_ray

    config = EVERYTHING
    save(
        teacher,
        tmp_path / "teacher",
        items=dataset_directory / "items.parquet",
        origin=Origin(role="teacher"),
    )
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    torch.set_num_threads(1)
    write_targets(teacher, dataset, tmp_path / "alone", config)
    write_targets_on_ray(
        tmp_path / "teacher", dataset_directory, tmp_path / "together", config, num_workers=2
    )
    alone, together = (sorted((tmp_path / name).glob("*.arrow")) for name in ("alone", "together"))
    assert [path.name for path in alone] == [path.name for path in together]
    for one, two in zip(alone, together, strict=True):
        assert one.read_bytes() == two.read_bytes()
    # As a kill half way leaves it.
    together[0].rename(together[0].with_suffix(".tmp"))
    write_targets_on_ray(
        tmp_path / "teacher", dataset_directory, tmp_path / "together", config, num_workers=2
    )
    assert [path.name for path in sorted((tmp_path / "together").glob("*.arrow"))] == [
        path.name for path in together
    ]
    assert alone[0].read_bytes() == together[0].read_bytes()
    assert capfd.readouterr().err == ""


def test_targets_that_do_not_fit_the_disk_are_refused_with_the_number(
    dataset, tmp_path, monkeypatch
):
    config, whole = (TargetsConfig(top_k=k) for k in (10**12, dataset.num_items_with_padding - 1))
    needed = int(first_rows(dataset)[-1]) * whole.bytes_per_position(16)
    for free, fits in ((needed, True), (needed - 1, False)):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _, usage=usage: usage)
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(ValueError, match=r"need [\d.]+ GiB \(\d+ bytes a position\)")
        ):
            require_room(dataset, tmp_path, config, width=16)


def test_the_bytes_of_a_position_are_those_on_disk(dataset, teacher, tmp_path):
    write_targets(teacher, dataset, tmp_path, EVERYTHING)
    arrays = [values for shard in Targets(tmp_path).shards for values in shard.values()]
    written = sum(values.nbytes for values in arrays)
    assert written == EVERYTHING.bytes_per_position(MODEL.width) * first_rows(dataset)[-1]


def test_the_objective_looks_up_the_answers_of_its_positions(
    dataset, teacher, store_targets, tmp_path
):
    stored = store_targets(teacher, dataset, tmp_path / "stored", TargetsConfig(top_k=TOP_K))
    batch = to_tensors(batches_of(dataset).batch(0), torch.device("cpu"))
    student = build(replace(MODEL, dropout=0.0), dataset.num_items_with_padding)
    objective = Distillation(stored, DistillConfig(soft="kl", soft_weight=0.6, temperature=2.0))
    logits_BLV = student.encode(batch.inputs) @ student.item_table().T
    seen_BLV = torch.zeros_like(logits_BLV, dtype=torch.bool)
    seen_BLV.scatter_(2, seen_items(batch.inputs), True).scatter_(
        2, batch.targets_BL[..., None], False
    )
    logits_BLV = logits_BLV.masked_fill(seen_BLV, -1e4)
    targets, expected = Targets(stored), 0.0
    for row, logits_V, item in zip(
        batch.rows_BL.flatten().tolist(),
        logits_BLV.flatten(0, 1),
        batch.targets_BL.flatten().tolist(),
        strict=True,
    ):
        if row >= 0:
            answers = targets.look_up(np.array([row])).answers()
            items, logs = answers.items_NK[0], answers.logs_NK[0]
            soft = ((logs / 2).softmax(-1) * (logits_V / 2).log_softmax(-1)[items]).sum()
            expected -= 0.4 * logits_V.log_softmax(-1)[item] + 0.6 * 4 * soft
    torch.testing.assert_close(objective(student, batch), expected)


def test_interrupted_writing_goes_on(dataset, teacher, tmp_path):
    config = EVERYTHING
    write_targets(teacher, dataset, tmp_path, config)
    files = sorted(tmp_path.glob("*.arrow"))
    assert len(files) > 1
    before = {path: path.read_bytes() for path in files}
    files[-1].unlink()
    write_targets(teacher, dataset, tmp_path, config)
    assert {path: path.read_bytes() for path in sorted(tmp_path.glob("*.arrow"))} == before


def test_a_directory_without_targets_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no targets"):
        Targets(tmp_path)
