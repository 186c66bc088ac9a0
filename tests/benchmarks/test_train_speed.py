import pytest

from benchmarks import train_speed
from benchmarks.peers import RECSYS, train
from benchmarks.rows import Results, values_of
from benchmarks.systems.work import Quality, Speed, Watch, Work


def work_on(directory, goal):
    return Work(
        dataset=directory,
        width=16,
        num_layers=1,
        num_heads=2,
        feed_forward_width=16,
        length=8,
        num_threads=1,
        seed=0,
        goal=goal,
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at `moment[0]`."""
    moment = [0.0]
    monkeypatch.setattr("benchmarks.systems.work.time.perf_counter", lambda: moment[0])
    return moment


def test_a_watch_of_speed_leaves_out_what_warms_up(clock):
    watch = Watch(Speed(warm_up=2, steps=3))
    for moment in (10.0, 20.0, 21.0, 22.0, 24.0, 99.0):
        clock[0] = moment
        watch.step(5, evaluate=lambda: 0.0)
    seen = watch.result()
    assert watch.done
    assert (seen["seconds"], seen["num_targets"], seen["num_steps"]) == (4.0, 15, 3)


def test_a_watch_of_quality_does_not_count_evaluation(clock):
    values = iter([0.1, 0.3, 0.2])

    def evaluate():
        clock[0] += 100.0
        return next(values)

    watch = Watch(Quality(budget_seconds=1000.0, evaluate_every_seconds=2.0, patience=1))
    while not watch.done:
        clock[0] += 1.0
        watch.step(5, evaluate)
    assert watch.curve == [(2.0, 0.1), (4.0, 0.3), (6.0, 0.2)]


@pytest.mark.parametrize(
    ("goal", "seconds"),
    [
        (Quality(budget_seconds=3.0, evaluate_every_seconds=1.0, patience=9), 3.0),
        (Quality(budget_seconds=9.0, evaluate_every_seconds=1.0, patience=9, enough=0.2), 2.0),
    ],
)
def test_a_watch_of_quality_ends_with_its_budget_or_when_it_is_enough(clock, goal, seconds):
    values = iter([0.1, 0.2, 0.3, 0.4])
    watch = Watch(goal)
    while not watch.done:
        clock[0] += 1.0
        watch.step(5, lambda: next(values))
    assert watch.seconds == seconds


def test_the_best_of_a_curve_is_where_it_was_first_reached():
    curve = [[1.0, 0.1], [2.0, 0.3], [3.0, 0.3], [4.0, 0.2]]
    seen = {"curve": curve, "seconds": 4.0, "peak_memory_mib": 1.0, "versions": {}}
    values, _ = train_speed._best(seen)
    assert values["validation_ndcg@10"] == (0.3, "")
    assert values["seconds_to_it"] == (2.0, "s")


def test_recsys_is_measured_in_a_process_of_its_own(dataset_directory):
    seen = train(RECSYS, work_on(dataset_directory, Speed(warm_up=1, steps=2, profile=True)))
    assert seen["num_steps"] == 2
    assert 0 < seen["num_targets"] <= 2 * seen["batch_rows"] * 8
    assert seen["seconds"] > 0
    assert seen["peak_memory_mib"] > 50
    assert 0 < sum(share for _, share in seen["operators"]) <= 1


def test_recsys_trains_to_a_quality(dataset_directory):
    goal = Quality(budget_seconds=30.0, evaluate_every_seconds=0.0, patience=100, enough=0.1)
    seen = train(RECSYS, work_on(dataset_directory, goal))
    values = [value for _, value in seen["curve"]]
    assert values[-1] >= 0.1 > max([0.0, *values[:-1]])
    assert seen["seconds"] == seen["curve"][-1][0]


def test_the_quick_benchmark_measures_what_is_not_measured_yet(
    dataset_directory, tmp_path, monkeypatch
):
    asked = []

    def fake(system, work, flags):
        asked.append((system.name, work.seed, flags))
        return {"num_targets": 30, "seconds": 2.0, "peak_memory_mib": 100.0, "versions": {}}

    monkeypatch.setattr(train_speed, "train", fake)
    results = Results("train_speed", tmp_path)
    options = train_speed.Options(
        dataset="synthetic", only=("recsys", "rectools"), repeats=2, quick=True
    )
    bench = train_speed.Bench(options, dataset_directory, results)
    bench.run()
    assert asked == [("recsys", 0, []), ("rectools", 0, []), ("recsys", 1, []), ("rectools", 1, [])]
    bench.run()
    assert len(asked) == 4
    assert values_of(results.rows(), "tokens_per_second") == [15.0] * 4
    assert "| rectools, defaults, d=64 L=50 | 15 (15-15) | 100 |" in train_speed.markdown(
        results.rows()
    )
