"""What a log must look like, and how it is cleaned."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from recsys.config import require_below_one
from recsys.data.content import ContentConfig
from recsys.data.split import GlobalTimeCut, LeaveOneOut, Split
from recsys.data.synthetic import SyntheticConfig

SCHEMA_VERSION = 1
USER, ITEM, TIME, ORDER, PLACE = "user_id", "item_id", "timestamp", "order", "place"
FRACTION, ORDER_FRACTION = "fraction", "order_fraction"  # of what is no whole number


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Where the log is, what its columns are called, and how it is cleaned and split."""

    source: Literal["synthetic", "movielens-1m", "log"] = "synthetic"
    """The built-in log, the public archive (fetched, or a local copy by --log), or your own."""
    log: str | None = None
    """The log: Parquet, CSV or JSON Lines; a file, a folder, a local path or a URI."""
    items: str | None = None
    """The item table, with an item column and any others."""
    user_column: str = "user_id"
    """The log's column of users."""
    item_column: str = "item_id"
    """The column of items, in the log and in the item table."""
    time_column: str = "timestamp"
    """The log's column of times: numbers of any unit, or dates."""
    order_column: str | None = None
    """A column that orders events of the same time, by numbers or dates; none for the order of the
    log."""
    on_bad_rows: Literal["refuse", "set-aside"] = "refuse"
    """Whether rows that cannot be used stop the work, or go to rejected.parquet."""
    drop_duplicates: bool = True
    """Whether the same user, item and time count once."""
    k_core: int = 0
    """Users and items with fewer interactions are dropped, again and again; 0 keeps all."""
    min_length: int = 1
    """Users with fewer interactions are dropped."""
    split: Literal["leave-one-out", "global-time-cut"] = "leave-one-out"
    """Whether each user's last two items are held out, or what comes after two moments."""
    validation_fraction: float = 0.1
    """Of a cut by time, the share of the interactions between the two moments."""
    test_fraction: float = 0.1
    """Of a cut by time, the share of the interactions after the second moment."""
    keep_unseen_items: bool = False
    """Whether items of the table that nobody has met yet are in the catalogue, too; what is to be
    recommended of them is up to their content."""
    cold_items: float = 0.0
    """Share of the items that training never meets: their events are taken out of it, and stay as
    targets of validation and test."""
    cold_seed: int = 0
    """Seed of which items those are."""
    content: ContentConfig = field(default_factory=ContentConfig)
    """Features of item text, images and embeddings."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The built-in log."""

    def __post_init__(self) -> None:
        if self.k_core < 0 or self.min_length < 1:
            raise ValueError("k_core must be at least 0 and min_length at least 1")
        columns = (self.user_column, self.item_column, self.time_column, self.order_column)
        twice = [column for column in columns if column and columns.count(column) > 1]
        if twice:
            raise ValueError(
                f"the column {twice[0]!r} cannot be two things: give users, items, times and the "
                "order a column each"
            )
        self._by_time()  # checks its fractions
        require_below_one(cold_items=self.cold_items)

    @property
    def cut(self) -> Split:
        """What is for training, validation and test."""
        return LeaveOneOut() if self.split == "leave-one-out" else self._by_time()

    def _by_time(self) -> GlobalTimeCut:
        return GlobalTimeCut(
            validation_fraction=self.validation_fraction, test_fraction=self.test_fraction
        )

    def resolved(self) -> "PrepareConfig":
        """Returns the config with the source that is meant: a log that is given is the one used.

        Raises:
            ValueError: a log is needed and none is given.
        """
        if self.log is None and self.items is not None:
            raise ValueError("an item table without a log: say where the log is with --log")
        if self.log is None and self.source == "log":
            raise ValueError("no log: say where it is with --log")
        if self.log is None or self.source == "log":
            return self
        if self.source == "movielens-1m" and self.items is None and _may_be_archive(self.log):
            return self
        return replace(self, source="log")


def _may_be_archive(log: str) -> bool:
    return log.lower().endswith(".zip") or (Path(log) / "ratings.dat").exists()
