"""What matters in a teacher: `python -m benchmarks.ablation movielens-1m --log LOG`.

Each variant is the preset with a flag changed, on several seeds: the seeds of one SASRec on
MovieLens-1M spread by 3.4 %. What the preset has anyway is not trained twice. Rows go to
benchmarks/results/ablation.json; `--readme` writes the table between the markers
`ablation-<dataset>` of the README.
"""

from benchmarks.variants import Variants, main

PRESET: Variants = {"preset": ()}
SEEN = ("--loss.no-leave-out-seen",)
"""A softmax over the whole catalogue, as others train: labels can be smoothed over that only."""


def sweep(flag: str, *settings: float) -> Variants:
    """Returns variants that change one flag of `jobs.train`, named after it and its setting."""
    name = flag.rpartition(".")[2]
    return {f"{name}={value}": (f"--{flag}", str(value)) for value in settings}


SHARED: Variants = {
    **PRESET,
    **sweep("model.dropout", 0.1, 0.2, 0.3, 0.5),
    **sweep("model.width", 64, 128, 192, 256),
    **sweep("model.num-layers", 1, 2, 3),
    **sweep("train.learning-rate", 5e-4, 1e-3, 2e-3),
    **sweep("train.ema", 0.99, 0.999),
    "no average of weights": ("--train.ema", "None"),
    "seen items compete": SEEN,
    **{name: (*flags, *SEEN) for name, flags in sweep("loss.label-smoothing", 0.05, 0.1).items()},
    "sampled softmax": ("--loss.kind", "sampled-softmax"),
    "gbce": ("--loss.kind", "gbce"),
}
VARIANTS = {
    "synthetic": SHARED,
    "movielens-1m": {
        **SHARED,
        **sweep("model.max-length", 50, 100, 200),
        **sweep("train.epochs", 12, 24, 48),
    },
    "amazon-beauty": {
        **SHARED,
        **sweep("model.max-length", 20, 50),
        **sweep("train.epochs", 15, 30, 60),
    },
}

if __name__ == "__main__":
    main("ablation", VARIANTS)
