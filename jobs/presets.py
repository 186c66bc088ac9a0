"""Named settings for every stage: a place to start, every value of it a flag."""

from dataclasses import dataclass, field, replace

from jobs.recipes import RecipeFlag
from recsys.compress import CodebookItems, Quantize
from recsys.compress.shrink import Start
from recsys.data.schema import PrepareConfig
from recsys.distill.answers import TargetsConfig
from recsys.distill.objective import DistillConfig
from recsys.models import GRUConfig, HSTUConfig, ModelConfig, StudentConfig, TransformerConfig
from recsys.search.space import ChooseConfig, SearchConfig
from recsys.train.config import TrainConfig
from recsys.train.fit import NumWorkers
from recsys.train.objective import LossConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of a whole pipeline."""

    description: str
    """What the preset is for; one line of --help."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    """The log and how it is cleaned and split."""
    teacher: ModelConfig
    """The teacher's shape."""
    train: TrainConfig
    """How the teacher is trained."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What teacher and lone student minimise."""
    student: StudentConfig
    """The student's shape."""
    keep: TargetsConfig = field(default_factory=TargetsConfig)
    """What is kept of the teacher's answers."""
    live: bool = False
    """Whether the teacher is asked in every step, so that nothing is written: for a log that is
    small, or targets that are too large."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """How the student listens to the teacher."""
    start: Start = "auto"
    """Where the student's weights start: as the teacher's, cut to the student's shape (teacher), at
    random (fresh), or as the teacher's where both shapes allow it (auto)."""
    train_student: TrainConfig
    """How students are trained, distilled and alone."""
    recipe: RecipeFlag = (Quantize(),)
    """How the student is compressed."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """What is searched for."""
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    """Which point of the frontier is served."""
    num_workers: NumWorkers = 2
    """Workers that train teacher and student, or the fewest and the most; 0 for this process,
    without Ray."""


QUICKSTART = Preset(
    description="The built-in synthetic log; minutes on a laptop.",
    teacher=TransformerConfig(
        width=96, num_layers=2, num_heads=2, head_width=32, feed_forward_width=192, max_length=50
    ),
    train=TrainConfig(
        epochs=10, batch_rows=32, learning_rate=3e-3, evaluate_every=2, num_threads=1
    ),
    student=TransformerConfig(
        width=16,
        num_layers=1,
        num_heads=1,
        head_width=32,
        feed_forward_width=32,
        max_length=50,
        dropout=0.0,
    ),
    keep=TargetsConfig(top_k=32),
    train_student=TrainConfig(
        epochs=10, batch_rows=16, learning_rate=6e-3, evaluate_every=2, num_threads=1
    ),
    search=SearchConfig(
        num_trials=4,
        epochs=8,
        widths=(16, 24, 32),
        num_layers=(1,),
        item_codes=(0, 8),
        recover_epochs=2,
    ),
)

QUICKSTART_GRU = replace(
    QUICKSTART,
    description="The same with a recurrent student.",
    student=GRUConfig(width=16, hidden_width=32, max_length=50, dropout=0.1),
)

MOVIELENS_1M = Preset(
    description="MovieLens-1M, films: long histories, small catalogue.",
    prepare=PrepareConfig(source="movielens-1m"),
    teacher=TransformerConfig(
        width=192,
        num_layers=2,
        num_heads=6,
        head_width=32,
        feed_forward_width=384,
        max_length=200,
        dropout=0.3,
    ),
    train=TrainConfig(
        epochs=24, batch_rows=12, learning_rate=1e-3, evaluate_every=3, num_threads=1, compile=True
    ),
    student=TransformerConfig(
        width=64,
        num_layers=2,
        num_heads=2,
        head_width=32,
        feed_forward_width=128,
        max_length=200,
        dropout=0.0,
    ),
    train_student=TrainConfig(
        epochs=16, batch_rows=12, learning_rate=2e-3, evaluate_every=4, num_threads=1, compile=True
    ),
    search=SearchConfig(
        num_trials=6,
        epochs=12,
        widths=(32, 48, 64, 80),
        num_layers=(1, 2),
        expansions=(1, 2),
        item_codes=(0, 16),
    ),
)

MOVIELENS_1M_TIME = replace(
    MOVIELENS_1M,
    description="MovieLens-1M with a teacher that is told when the next film is rated.",
    teacher=HSTUConfig(
        width=192, num_layers=2, num_heads=6, head_width=32, max_length=200, time="target"
    ),
    train=replace(MOVIELENS_1M.train, epochs=20),
)

AMAZON_BEAUTY = Preset(
    description="Amazon Beauty 2014, a shop: short histories, sparse.",
    prepare=PrepareConfig(source="log", on_bad_rows="refuse"),
    teacher=TransformerConfig(
        width=128,
        num_layers=2,
        num_heads=4,
        head_width=32,
        feed_forward_width=256,
        max_length=50,
        dropout=0.5,
    ),
    train=TrainConfig(
        epochs=20,
        batch_rows=16,
        learning_rate=1e-3,
        ema=0.999,
        evaluate_every=3,
        num_threads=1,
        compile=True,
    ),
    student=TransformerConfig(
        width=32,
        num_layers=1,
        num_heads=1,
        head_width=32,
        feed_forward_width=64,
        max_length=50,
        dropout=0.3,
    ),
    train_student=TrainConfig(
        epochs=16, batch_rows=16, learning_rate=2e-3, evaluate_every=4, num_threads=1, compile=True
    ),
    search=SearchConfig(item_codes=(0, 8)),
)

AMAZON_SPORTS = replace(
    AMAZON_BEAUTY, description="Amazon Sports 2014, a shop: short histories, sparse."
)

YELP = replace(
    AMAZON_BEAUTY, description="Yelp 2019, places: short histories, sparse, with repeat visits."
)

AMAZON_MULTI = replace(
    AMAZON_BEAUTY,
    description="Six Amazon shops in one: 125 thousand items.",
    train=replace(
        AMAZON_BEAUTY.train,
        epochs=16,
        batch_rows=64,
        learning_rate=2e-3,
        evaluate_every=8,
        validation_users=5_000,
    ),
    loss=LossConfig(kind="sampled-softmax", num_negatives=4096),
    student=replace(AMAZON_BEAUTY.student, width=64, num_heads=2, feed_forward_width=128),
    distill=DistillConfig(soft="kl", num_negatives=4096),
    live=True,
    train_student=replace(
        AMAZON_BEAUTY.train_student,
        epochs=6,
        batch_rows=64,
        learning_rate=4e-3,
        evaluate_every=3,
        validation_users=5_000,
    ),
    recipe=(CodebookItems(codes=16), Quantize()),
    search=SearchConfig(widths=(32, 48, 64), item_rank_shares=(0.0,), item_codes=(8, 16)),
)

PRESETS = {
    "quickstart": QUICKSTART,
    "quickstart-gru": QUICKSTART_GRU,
    "movielens-1m": MOVIELENS_1M,
    "movielens-1m-time": MOVIELENS_1M_TIME,
    "amazon-beauty": AMAZON_BEAUTY,
    "amazon-sports": AMAZON_SPORTS,
    "amazon-multi": AMAZON_MULTI,
    "yelp": YELP,
}
