import shutil
import typing
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys.checkpoint import Origin
from recsys.data.batches import Batches, empty_batch
from recsys.distill.answers import Answers, LiveTeacher, TargetsConfig, ask
from recsys.distill.objective import (
    NEEDS_CATALOGUE,
    NEEDS_SAMPLE,
    TEMPERED,
    VECTOR_WEIGHTS,
    Distillation,
    DistillConfig,
    Soft,
    _Positions,
)
from recsys.distill.targets import Targets
from recsys.files import read_json, write_json
from recsys.losses import LEFT_OUT
from recsys.models import TransformerConfig, build, load_model, save
from recsys.train.objective import LossConfig, objective, seen_items, to_tensors

MODEL = TransformerConfig(
    width=16, num_layers=1, num_heads=2, head_width=8, feed_forward_width=32, max_length=20
)
STUDENT = replace(MODEL, width=8, num_heads=1, dropout=0.0)
KEEP = TargetsConfig(top_k=5, num_sampled=8, vectors=True)
KINDS = typing.get_args(Soft)


@pytest.fixture(scope="module")
def directory(dataset, dataset_directory, store_targets, tmp_path_factory):
    """A teacher with opinions, and what it says."""
    directory = tmp_path_factory.mktemp("distill")
    torch.manual_seed(0)
    teacher = build(MODEL, dataset.num_items_with_padding).eval()
    with torch.no_grad():
        for parameter in teacher.item_embedding.parameters():
            parameter.mul_(30)
    items = dataset_directory / "items.parquet"
    save(teacher, directory / "teacher", items=items, origin=Origin(role="teacher"))
    store_targets(teacher, dataset, directory / "targets", KEEP)
    return directory


@pytest.fixture
def batch(dataset):
    batches = Batches(dataset, num_rows=4, length=20, seed=0, epoch=0)
    return to_tensors(batches.batch(0), torch.device("cpu"))


@pytest.fixture
def student(dataset):
    torch.manual_seed(1)
    return build(STUDENT, dataset.num_items_with_padding)


def fit(student, objective, batch, steps=60):
    """Returns the loss before and after some steps."""
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    first = objective(student, batch).item()
    for _ in range(steps):
        optimizer.zero_grad()
        objective(student, batch).backward()
        optimizer.step()
    return first, objective(student, batch).item()


def agreement(student, batch, answers):
    """Returns the share of pairs that the student orders as the teacher does: of its best items
    among themselves, and of one of them and one of the sample."""
    asked = batch.rows_BL >= 0
    with torch.inference_mode():
        scores_NV = student.encode(batch.inputs)[asked] @ student.item_table().T
    best_NK = scores_NV.gather(1, answers.items_NK)
    others_NM = scores_NV.gather(1, answers.sampled_NM)
    counts_NM = ~answers.sampled_logs_NM.isneginf()
    above_NKM = (best_NK[:, :, None] > others_NM[:, None]).transpose(1, 2)[counts_NM]
    first, second = torch.triu_indices(5, 5, 1)
    return (
        (best_NK[:, first] > best_NK[:, second]).float().mean().item(),
        above_NKM.float().mean().item(),
    )


@pytest.mark.parametrize("soft", KINDS)
def test_by_any_loss_a_student_learns_what_the_teacher_would_recommend(
    directory, batch, student, soft
):
    objective = Distillation(directory / "targets", DistillConfig(soft=soft, soft_weight=0.9))
    answers = Targets(directory / "targets").answers(batch)
    start = agreement(student, batch, answers)
    before, after = fit(student, objective, batch)
    assert after < before
    end = agreement(student, batch, answers)
    assert end[0] > start[0] + 0.03
    if soft in ("kl", "probabilities", "relaxed-ranking", "union"):  # they know of others, too
        assert end[1] > start[1] + 0.3


@pytest.mark.parametrize("soft", KINDS)
def test_looked_up_for_all_positions_the_loss_is_the_same(dataset, directory, student, soft):
    """As a GPU that repeats a step needs it: nothing has a shape of its own."""
    batches = Batches(dataset, num_rows=4, length=20, seed=0, epoch=0)
    batch = to_tensors(batches.batch(len(batches) - 1), torch.device("cpu"))
    assert 0 < (batch.rows_BL >= 0).float().mean() < 1
    objective = Distillation(directory / "targets", DistillConfig(soft=soft, soft_weight=0.7))
    gradients = []
    for read in (batch, objective.look_up(batch)):
        student.zero_grad()
        loss = objective(student, read)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in student.parameters())])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "repeats"),
    [
        ({}, True),
        ({"soft": "kl"}, True),
        ({"trust": True}, False),
        ({"soft_weight_at_end": 0.5}, False),
        ({"soft": "kl", "num_negatives": 8}, False),
        ({"relation_weight": 1.0}, False),
    ],
    ids=str,
)
def test_steps_repeat_where_all_is_looked_up_or_the_same(
    dataset_directory, directory, settings, repeats
):
    config = DistillConfig(**settings)
    stored = Distillation(directory / "targets", config, dataset_directory)
    assert stored.repeats is repeats
    live = Distillation(LiveTeacher(directory / "teacher", KEEP), config, dataset_directory)
    assert not live.repeats


@pytest.mark.parametrize("soft", KINDS)
def test_with_no_weight_only_the_log_is_learned(directory, batch, student, soft):
    silent = DistillConfig(soft=soft, soft_weight=0.0)
    loss = Distillation(directory / "targets", silent)(student, batch)
    plain = objective(LossConfig(), directory)(student, batch)
    torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize(
    ("soft", "temperature"),
    [
        *((soft, 1.0) for soft in sorted(set(KINDS) - set(NEEDS_CATALOGUE))),
        *((soft, 2.0) for soft in TEMPERED),
    ],
)
def test_a_large_sample_gives_the_loss_over_the_catalogue(
    dataset_directory, directory, batch, student, soft, temperature
):
    config = DistillConfig(soft=soft, soft_weight=0.5, temperature=temperature)
    expected = Distillation(directory / "targets", config)(student, batch)
    many = replace(config, num_negatives=100_000)
    loss = Distillation(directory / "targets", many, dataset_directory)(student, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)


def test_from_a_sample_a_student_learns_what_the_teacher_would_recommend(
    dataset_directory, directory, batch, student
):
    answers = Targets(directory / "targets").answers(batch)
    start = agreement(student, batch, answers)
    config = DistillConfig(soft="kl", num_negatives=8)
    fit(student, Distillation(directory / "targets", config, dataset_directory), batch)
    end = agreement(student, batch, answers)
    assert end[0] > start[0] + 0.03
    assert end[1] > start[1] + 0.3


LISTED = [soft for soft in typing.get_args(Soft) if soft not in ("kl", "probabilities")]


@pytest.mark.parametrize("soft", LISTED)
@pytest.mark.parametrize("num_items", [6, 12])
@pytest.mark.parametrize("top_k", [3, 40])
def test_what_is_listed_counts_as_far_as_it_is_new_to_a_user(directory, soft, num_items, top_k):
    """In small catalogues less is new than is listed, or than a student has favourites."""
    torch.manual_seed(2)
    student = build(STUDENT, num_items + 1)
    new = 2
    seen_NL = torch.arange(1, num_items - new + 1).repeat(4, 1)
    seen_NL[3, -1] = 0  # another has had less
    teacher_NV = torch.randn(4, num_items + 1).scatter(1, seen_NL, LEFT_OUT)
    teacher_NV[:, 0] = LEFT_OUT
    logs_NV = teacher_NV.log_softmax(dim=-1)
    logs_NK, items_NK = logs_NV.topk(min(top_k, num_items))
    no_sample = torch.empty(4, 0, dtype=torch.long), torch.empty(4, 0), torch.empty(4, 0)
    answers = Answers(items_NK, logs_NK, logs_NV[:, num_items], *no_sample)
    targets_N = torch.full((4,), num_items)
    at = _Positions(student, torch.randn(4, STUDENT.width), targets_N, seen_NL, answers, None)
    config = DistillConfig(soft=soft)
    source = LiveTeacher(directory / "teacher", TargetsConfig(num_sampled=1))
    loss_N = Distillation(source, config)._listed(at)
    assert (loss_N.abs() < 100).all()
    loss_N.sum().backward()
    learns_V = student.item_embedding.weight.grad.norm(dim=1) > 0
    had_by_all = num_items - new - 1
    assert learns_V.tolist() == [False] * (1 + had_by_all) + [True] * (new + 1)


@pytest.mark.parametrize(
    ("soft", "num_negatives"),
    [("kl", None), ("kl", 50_000), ("union", None), ("probabilities", None)],
)
def test_what_was_seen_does_not_come_back_at_the_end_of_a_long_list(
    dataset, dataset_directory, directory, batch, student, soft, num_negatives
):
    """A list as long as the catalogue: items that the user has had stand at its end."""
    keep = TargetsConfig(top_k=len(dataset.item_ids) - 1, num_sampled=4)
    teacher = LiveTeacher(directory / "teacher", keep)
    config = DistillConfig(soft=soft, soft_weight=1.0, num_negatives=num_negatives)
    loss = Distillation(teacher, config, dataset_directory)(student, batch)
    asked_BL = batch.rows_BL >= 0
    targets_N1 = batch.targets_BL[asked_BL][:, None]
    logs_NV = []
    for model, keeps_target in ((teacher.model, False), (student, True)):
        scores_NV = model.encode(batch.inputs)[asked_BL] @ model.item_table().T
        kept_N1 = scores_NV.gather(1, targets_N1)
        scores_NV = scores_NV.scatter(1, seen_items(batch.inputs)[asked_BL], LEFT_OUT)
        if keeps_target:
            scores_NV = scores_NV.scatter(1, targets_N1, kept_N1)
        scores_NV[:, 0] = LEFT_OUT
        logs_NV.append(scores_NV.log_softmax(dim=-1))
    expected = -(logs_NV[0].exp() * logs_NV[1]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


def test_items_are_counted_in_a_dataset(directory):
    with pytest.raises(ValueError, match="num_negatives needs the dataset"):
        Distillation(directory / "targets", DistillConfig(soft="kl", num_negatives=8))


@pytest.mark.parametrize("soft", NEEDS_CATALOGUE)
def test_what_is_over_the_whole_catalogue_takes_no_sample(soft):
    with pytest.raises(ValueError, match=r"whole catalogue: give --distill.num-negatives None"):
        DistillConfig(soft=soft, num_negatives=8)


@pytest.mark.parametrize("weight", VECTOR_WEIGHTS)
def test_vectors_are_matched_on_top_of_labels(directory, batch, student, weight):
    plain, matched = (
        Distillation(directory / "targets", config)
        for config in (DistillConfig(), DistillConfig(**{weight: 2.0}))
    )
    extra = [matched(student, batch) - plain(student, batch)]
    assert extra[0] > 0
    fit(student, matched, batch)
    extra.append(matched(student, batch) - plain(student, batch))
    assert extra[1] < extra[0]


@pytest.mark.parametrize(
    "settings", [*({"soft": soft} for soft in KINDS), {"soft": "kl", "num_negatives": 8}], ids=str
)
def test_a_share_of_a_batch_that_is_all_padding_has_no_loss(
    dataset_directory, directory, student, settings
):
    """As a worker gets where an epoch's last batch has fewer rows than there are workers."""
    batch = to_tensors(empty_batch(2, 20), torch.device("cpu"))
    config = DistillConfig(**settings, **dict.fromkeys(VECTOR_WEIGHTS, 1))
    loss = Distillation(directory / "targets", config, dataset_directory)(student, batch)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in student.parameters() if p.grad is not None)
    assert student.item_embedding.weight.grad is not None


def test_items_that_a_user_has_had_are_known_at_every_position(directory, batch, student):
    inputs, asked = batch.inputs, batch.rows_BL >= 0
    answers = Targets(directory / "targets").answers(batch)
    targets_N, seen_NL = batch.targets_BL[asked], seen_items(inputs)[asked]
    at = _Positions(student, student.encode(inputs)[asked], targets_N, seen_NL, answers, None)
    places_P, items_I = torch.tensor([7, 0, 30]), torch.tensor([4, 1, 9, 2])
    had = [[item in seen_NL[place] for item in items_I] for place in places_P]
    assert at.had(places_P, items_I).tolist() == had
    had_NI = at.had(torch.arange(len(targets_N)), torch.arange(1, at.num_items + 1))
    assert 0 < had_NI.float().mean() < 1
    assert not replace(at, seen_NL=None).had(places_P, items_I).any()


def test_a_live_teacher_gives_the_loss_of_a_stored_one(directory, batch, student):
    config = DistillConfig(soft_weight=0.6, hint_weight=0.3)
    stored = Distillation(directory / "targets", config)
    live = Distillation(LiveTeacher(directory / "teacher", KEEP), config)
    said, read = live.teacher.answers(batch), stored.teacher.answers(batch)
    for name in ("items_NK", "logs_NK", "target_logs_N", "states_NE"):
        torch.testing.assert_close(getattr(said, name), getattr(read, name), rtol=1e-2, atol=1e-2)
    vectors = live.teacher.item_vectors()
    torch.testing.assert_close(vectors, stored.teacher.item_vectors().float(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(live(student, batch), stored(student, batch), rtol=1e-3, atol=1e-2)


def test_a_target_that_is_a_repeat_takes_part_in_the_teachers_softmax(directory, batch):
    teacher = load_model(directory / "teacher")
    repeats = batch._replace(targets_BL=batch.inputs.items_BL)
    asked_BL = batch.rows_BL >= 0
    targets_N1 = repeats.targets_BL[asked_BL][:, None]
    scores_NV = teacher.encode(batch.inputs)[asked_BL] @ teacher.item_table().T
    target_scores_N1 = scores_NV.gather(1, targets_N1)
    scores_NV = scores_NV.scatter(1, seen_items(batch.inputs)[asked_BL], LEFT_OUT)
    scores_NV = scores_NV.scatter(1, targets_N1, target_scores_N1)
    scores_NV[:, 0] = LEFT_OUT
    answers = ask(teacher, repeats, TargetsConfig()).answers()
    expected_N1 = scores_NV.log_softmax(dim=-1).gather(1, targets_N1)
    torch.testing.assert_close(answers.target_logs_N, expected_N1[:, 0])


def test_to_load_a_live_teacher_draws_nothing(directory):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert LiveTeacher(directory / "teacher", TargetsConfig()).model is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_live_teacher_reads_no_more_than_it_has_learned_to(directory):
    teacher = LiveTeacher(directory / "teacher", TargetsConfig())
    teacher.require_length(MODEL.max_length)
    with pytest.raises(ValueError, match=f"--train.row-length {MODEL.max_length}"):
        teacher.require_length(MODEL.max_length + 1)


def test_a_teacher_of_other_items_or_another_dataset_is_refused(
    directory, dataset_directory, tmp_path
):
    shutil.copytree(dataset_directory, tmp_path / "other")
    stage = read_json(tmp_path / "other" / "stage.json")
    write_json(tmp_path / "other" / "stage.json", {**stage, "fingerprint": "another"})
    items = pq.read_table(tmp_path / "other" / "items.parquet")
    pq.write_table(items.take(list(range(len(items)))[::-1]), tmp_path / "other" / "items.parquet")
    with pytest.raises(ValueError, match="of another dataset"):
        Distillation(directory / "targets", DistillConfig(), tmp_path / "other")
    live = LiveTeacher(directory / "teacher", TargetsConfig())
    with pytest.raises(ValueError, match="different items"):
        Distillation(live, DistillConfig(), tmp_path / "other")


def test_the_weight_moves_evenly_to_its_end(directory, batch, student):
    def loss(progress: float, **settings: float) -> torch.Tensor:
        objective = Distillation(directory / "targets", DistillConfig(**settings))
        return objective(student, batch._replace(progress=progress))

    moving = {"soft_weight": 0.9, "soft_weight_at_end": 0.1}
    for progress, weight in ((0.0, 0.9), (0.25, 0.7), (1.0, 0.1)):
        torch.testing.assert_close(loss(progress, **moving), loss(0.5, soft_weight=weight))


def test_a_teacher_is_trusted_less_where_it_missed_the_target(directory, batch):
    objective = Distillation(directory / "targets", DistillConfig(trust=True, soft_weight=0.8))
    answers = objective.teacher.answers(batch)
    weights_N = objective._soft_weight(answers, 0.0)[:, 0]
    order = answers.target_logs_N.argsort()
    assert (weights_N[order].diff() >= 0).all()
    assert weights_N.max() == pytest.approx(0.8)
    assert weights_N.min() < 0.4


def test_what_a_loss_does_not_read_is_not_looked_up(directory, batch, student):
    plain = Distillation(directory / "targets", DistillConfig())
    answers = plain.teacher.answers(batch)
    assert answers.items_NK.shape[1] == KEEP.top_k
    assert answers.sampled_NM.shape[1] == answers.states_NE.shape[1] == 0
    everything = Distillation(directory / "targets", DistillConfig())
    everything.teacher = Targets(directory / "targets")
    assert everything.teacher.answers(batch).states_NE.shape[1] == MODEL.width
    assert plain(student, batch) == everything(student, batch)


@pytest.mark.parametrize("soft", NEEDS_SAMPLE)
def test_a_loss_that_needs_a_sample_is_refused_without_one(soft):
    with pytest.raises(ValueError, match=r"need a sample of all items.*--keep.num-sampled 64"):
        DistillConfig(soft=soft).require(TargetsConfig())


def test_teacher_and_student_speak_of_the_same_items():
    with pytest.raises(ValueError, match=r"--keep.no-leave-out-seen and --distill"):
        DistillConfig(leave_out_seen=False).require(TargetsConfig())
    DistillConfig(leave_out_seen=False).require(TargetsConfig(leave_out_seen=False))


def test_workers_that_share_the_table_have_no_union():
    with pytest.raises(ValueError, match=r"give --distill.soft kl, or leave --train.sharded out"):
        DistillConfig().require_table(shared_out=True)
    DistillConfig().require_table(shared_out=False)
    DistillConfig(soft="kl").require_table(shared_out=True)


def test_a_loss_that_needs_vectors_is_refused_without_them(
    dataset, directory, store_targets, tmp_path
):
    config = DistillConfig(relation_weight=1.0)
    with pytest.raises(ValueError, match=r"need the teacher's vectors.*--keep.vectors"):
        config.require(replace(KEEP, vectors=False))
    teacher = LiveTeacher(directory / "teacher", KEEP).model
    targets = store_targets(teacher, dataset, tmp_path / "targets", TargetsConfig(top_k=5))
    with pytest.raises(ValueError, match=r"need the teacher's vectors"):
        Distillation(targets, config)
    with pytest.raises(ValueError, match="holds no vectors"):
        Targets(targets).item_vectors()


def test_a_directory_without_targets_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no targets; run jobs.distill"):
        Distillation(tmp_path, DistillConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"soft_weight": 1.5}, "soft_weight must be in"),
        ({"soft_weight_at_end": -0.1}, "soft_weight_at_end must be in"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"soft": "probabilities", "temperature": 2.0}, "have no temperature"),
        ({"temperature": 2.0}, "union have no temperature"),
        ({"hint_weight": -1.0}, "hint_weight must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)


def test_the_students_own_favourites_are_what_it_would_recommend(dataset, student, batch):
    from recsys.distill.objective import NUM_OWN, _own_best, _Positions
    from recsys.train.objective import seen_items

    asked = batch.rows_BL >= 0
    states_ND = student.encode(batch.inputs)[asked]
    seen_NL = seen_items(batch.inputs)[asked]
    targets_N, teacher = batch.targets_BL[asked], torch.ones(len(states_ND), 1, dtype=torch.long)
    answers = Answers(teacher, *[torch.empty(0)] * 5)
    at = _Positions(student, states_ND, targets_N, seen_NL, answers, None)
    found_NJ = _own_best(at).numpy()
    scores_NV = (states_ND @ student.item_table().T).detach().numpy()
    for own_J, scores_V, seen_L in zip(found_NJ, scores_NV, seen_NL.numpy(), strict=True):
        scores_V[seen_L] = -np.inf
        scores_V[0] = -np.inf
        np.testing.assert_array_equal(own_J, np.argsort(-scores_V)[:NUM_OWN])
