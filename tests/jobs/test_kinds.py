"""Every kind of model takes the way through the stages that is its own."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jobs import compress, distill, ensemble, evaluate, train
from jobs.compress import Compress
from recsys.compress import FactorizeItems, Quantize
from recsys.distill.answers import TargetsConfig
from recsys.distill.objective import DistillConfig
from recsys.evaluate.engine import OnnxModel
from recsys.files import read_json
from recsys.models import GRUConfig, HSTUConfig, TransformerConfig, load_model
from recsys.serve.recommender import Recommender
from recsys.train.config import TrainConfig
from recsys.train.objective import LossConfig

TRAIN = TrainConfig(epochs=8, batch_rows=4, learning_rate=1e-2, evaluate_every=8, num_threads=1)
TRANSFORMER = TransformerConfig(
    width=16, num_layers=1, num_heads=1, head_width=16, feed_forward_width=16, max_length=12
)
HSTU = HSTUConfig(width=16, num_layers=1, num_heads=2, head_width=8, max_length=12, time="target")
CUT = replace(TRANSFORMER, width=12, feed_forward_width=8)
GRU = GRUConfig(width=16, hidden_width=16, max_length=12)


def report_of(model):
    return json.loads((model / "report.json").read_text())


@pytest.fixture(scope="module")
def directory(dataset_directory, tmp_path_factory):
    """An HSTU, a transformer, and the stacked ensemble of both."""
    directory = tmp_path_factory.mktemp("kinds")
    for name, model in (("hstu", HSTU), ("transformer", TRANSFORMER)):
        output = directory / name
        train.run(
            train.Train(
                dataset=dataset_directory, output=output, model=model, train=TRAIN, num_workers=0
            )
        )
    ensemble.run(
        ensemble.Ensemble(
            members=(directory / "hstu", directory / "transformer"),
            dataset=dataset_directory,
            output=directory / "teacher",
            weights="stacked",
        )
    )
    return directory


@pytest.fixture(scope="module")
def student(directory, dataset_directory):
    return distill.run(
        distill.Distill(
            dataset=dataset_directory,
            teacher=directory / "teacher",
            targets=directory / "targets",
            output=directory / "student",
            model=GRU,
            keep=TargetsConfig(top_k=5),
            distill=DistillConfig(),
            train=TRAIN,
        )
    )


def test_teachers_without_a_graph_are_measured_and_their_track_is_told(directory, capsys):
    reports = {name: report_of(directory / name) for name in ("hstu", "transformer", "teacher")}
    assert all(report["ndcg@10"] > 0.3 for report in reports.values())
    assert "latency_ms" in reports["transformer"]
    assert "latency_ms" not in reports["hstu"]
    tracks = {name: report["track"] for name, report in reports.items()}
    assert tracks["transformer"] == "history only"
    assert tracks["hstu"] == tracks["teacher"] == "target's time given"
    members = [reports[name]["size_bytes"] for name in ("hstu", "transformer")]
    assert reports["teacher"]["size_bytes"] == pytest.approx(sum(members), rel=0.1)


def test_what_was_never_learned_of_seen_items_is_not_asked(directory, dataset_directory, student):
    assert not read_json(directory / "teacher" / "config.json")["scores_seen"]
    assert not read_json(student / "config.json")["scores_seen"]
    assert not Recommender(student).scores_seen
    job = distill.Distill(
        dataset=dataset_directory,
        teacher=directory / "teacher",
        targets=directory / "all-targets",
        output=directory / "of-all",
        model=GRU,
        keep=TargetsConfig(top_k=5, leave_out_seen=False),
        distill=DistillConfig(leave_out_seen=False),
        train=replace(TRAIN, epochs=1),
    )
    for asked in (job, replace(job, live=True)):
        with pytest.raises(ValueError, match=r"with --loss.no-leave-out-seen, or leave"):
            distill.run(asked)
    recovered = Compress(
        model=student,
        dataset=dataset_directory,
        output=directory / "of-all",
        teacher=directory / "teacher",
        targets=directory / "targets",
        recipe=(FactorizeItems(rank=12, recover_epochs=1),),
        distill=DistillConfig(leave_out_seen=False),
        train=TRAIN,
    )
    with pytest.raises(ValueError, match="must speak of the same items"):
        compress.run(recovered)
    with pytest.raises(ValueError, match="leave --keep-seen out"):
        evaluate.run(evaluate.Evaluate(model=student, dataset=dataset_directory, keep_seen=True))


def test_what_all_stages_learned_of_seen_items_is_served(directory, dataset_directory):
    teacher = train.run(
        train.Train(
            dataset=dataset_directory,
            output=directory / "scores-all",
            model=GRU,
            train=replace(TRAIN, epochs=1),
            loss=LossConfig(leave_out_seen=False),
            num_workers=0,
        )
    )
    job = Compress(
        model=teacher,
        dataset=dataset_directory,
        output=directory / "small-scores-all",
        teacher=teacher,
        targets=directory / "no-targets",
        recipe=(Quantize(),),
        distill=DistillConfig(),
        train=TRAIN,
    )
    model = Recommender(compress.run(job))
    assert model.scores_seen
    history = list(model._item_ids[1:4])
    everything = model.recommend([history], k=model.num_items, exclude_seen=False)
    assert len(everything[0]["items"]) == model.num_items
    recovered = replace(
        job,
        output=directory / "recovered",
        recipe=(FactorizeItems(rank=12, recover_epochs=1),),
        live=True,
        train=replace(TRAIN, epochs=1, evaluate_every=1),
    )
    assert not Recommender(compress.run(recovered)).scores_seen


def test_evaluating_a_model_without_a_graph_finds_the_same(directory, dataset_directory):
    before = report_of(directory / "hstu")["ndcg@10"]
    found = evaluate.run(evaluate.Evaluate(model=directory / "hstu", dataset=dataset_directory))
    assert found["ndcg@10"] == before


def test_a_gru_learns_from_an_ensemble_is_compressed_and_served(
    directory, dataset_directory, student
):
    compressed = compress.run(
        Compress(
            model=student,
            dataset=dataset_directory,
            output=directory / "compressed",
            teacher=directory / "teacher",
            targets=directory / "targets",
            recipe=(FactorizeItems(rank=12), Quantize()),
            distill=DistillConfig(),
            train=TRAIN,
        )
    )
    assert report_of(compressed)["size_bytes"] < report_of(student)["size_bytes"]
    assert report_of(compressed)["ndcg@10"] > 0.3
    assert load_model(compressed).config.item_rank == 12
    items_BK, _ = OnnxModel(compressed).top_k([np.array([1, 2, 3])], 5)
    assert items_BK.shape == (1, 5)


def test_a_student_starts_as_its_teacher_and_asks_it_live(directory, dataset_directory):
    job = distill.Distill(
        dataset=dataset_directory,
        teacher=directory / "transformer",
        targets=directory / "no-targets",
        output=directory / "cut",
        model=replace(CUT, dropout=0.0),
        keep=TargetsConfig(top_k=5, num_sampled=4),
        distill=DistillConfig(soft="probabilities"),
        train=replace(TRAIN, epochs=1),
        start="teacher",
        live=True,
    )
    cut = load_model(distill.run(job))
    assert cut.config == job.model
    assert not job.targets.exists()
    assert report_of(job.output)["ndcg@10"] > 0.3  # after one epoch
    assert not (job.output / "initial").exists()
    recovered = compress.run(
        Compress(
            model=job.output,
            dataset=dataset_directory,
            output=directory / "recovered",
            teacher=job.teacher,
            targets=job.targets,
            recipe=(Quantize(bits=4, recover_epochs=1),),
            keep=job.keep,
            distill=job.distill,
            train=TRAIN,
            live=True,
        )
    )
    assert report_of(recovered)["ndcg@10"] > 0.3


def test_a_student_that_is_no_smaller_teacher_is_refused_or_starts_from_noise(
    directory, dataset_directory, capsys
):
    job = distill.Distill(
        dataset=dataset_directory,
        teacher=directory / "teacher",
        targets=directory / "targets",
        output=directory / "none",
        model=GRU,
        keep=TargetsConfig(top_k=5),
        distill=DistillConfig(),
        train=TRAIN,
        start="teacher",
    )
    with pytest.raises(ValueError, match=r"only a transformer is cut .*; or take --start fresh"):
        distill.run(job)
    wider = replace(job, teacher=directory / "transformer", model=replace(CUT, head_width=4))
    with pytest.raises(ValueError, match=r"give the student --model\.head-width 16"):
        distill.run(wider)
    distill.run(replace(job, output=directory / "noise", start="auto"))
    assert "starts from noise: only a transformer is cut" in capsys.readouterr().out


def test_what_cannot_be_served_is_not_compressed(directory, dataset_directory):
    with pytest.raises(ValueError, match="HSTU cannot be served, so compress a student of it"):
        compress.run(
            Compress(
                model=directory / "hstu",
                dataset=dataset_directory,
                output=directory / "none",
                teacher=directory / "teacher",
                targets=directory / "targets",
                recipe=(Quantize(),),
                distill=DistillConfig(),
                train=TRAIN,
            )
        )


def test_an_ensemble_of_an_ensemble_is_refused(directory, dataset_directory):
    members = (directory / "teacher", directory / "hstu")
    with pytest.raises(ValueError, match="name its members"):
        ensemble.run(
            ensemble.Ensemble(members=members, dataset=dataset_directory, output=directory / "none")
        )
