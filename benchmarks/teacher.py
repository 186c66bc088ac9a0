"""The teachers of the presets: `python -m benchmarks.teacher movielens-1m --log LOG`.

Test metrics, full ranking, seen items removed; the weights are those with the best validation.
Rows go to benchmarks/results/teacher.json; `--readme` writes them between the markers
`teacher-<dataset>` of the README.
"""

from benchmarks.variants import Variants, main

PRESET: Variants = {"preset": ()}
VARIANTS = {
    "synthetic": PRESET,
    "movielens-1m": PRESET,
    "movielens-1m-time": {**PRESET, "past times": ("--model.time", "past")},
    "amazon-sports": PRESET,
    "amazon-beauty": PRESET,
    "amazon-multi": PRESET,
}

if __name__ == "__main__":
    main("teacher", VARIANTS)
