"""Training of text classifiers: a few epochs over a few thousand texts, in one process.

Apart from the loop over logs: nothing here is packed, sharded or resumed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from recsys.config import require_at_least
from recsys.data.texts import LabelledTexts
from recsys.models.text import TextClassifier
from recsys.train.config import has_bfloat16

VALIDATION_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class TextTrainConfig:
    """How to train a text classifier."""

    epochs: int = 4
    """Passes over the texts; the one with the best accuracy on a tenth of them is kept."""
    batch_size: int = 32
    """Texts of a batch."""
    learning_rate: float = 1e-4
    """Peak of a rate that rises and then falls in a line."""
    weight_decay: float = 0.01
    """AdamW's decay, of matrices."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Seed of batches, dropout and which texts are for validation."""

    def __post_init__(self) -> None:
        require_at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        if not (self.learning_rate > 0 and self.clip_norm > 0):
            raise ValueError("learning_rate and clip_norm must be positive")
        if not (self.weight_decay >= 0 and 0 <= self.warmup <= 1):
            raise ValueError("weight_decay must be at least 0 and warmup a share of all steps")


class HardLabels(nn.Module):
    """The mean cross-entropy of the categories."""

    def forward(self, model: TextClassifier, tokens_NT: Tensor, labels_N: Tensor) -> Tensor:
        return cross_entropy(model(tokens_NT).float(), labels_N)


class Epoch(NamedTuple):
    """What an epoch came to."""

    loss: float
    accuracy: float
    """On the texts for validation."""


def fit(
    model: TextClassifier,
    texts: LabelledTexts,
    config: TextTrainConfig,
    objective: nn.Module | None = None,
) -> list[Epoch]:
    """Trains `model` in place, ends with its best epoch and returns all.

    Args:
        objective: (model, tokens, labels) to the loss; what parameters it has are trained, too.

    Raises:
        ValueError: the categories are not the model's, or the loss is not finite.
    """
    if texts.categories != model.categories:
        raise ValueError("the texts have other categories than the model: make it from these texts")
    training, validation = texts.split(VALIDATION_SHARE, config.seed)
    objective = objective or HardLabels()
    tokens_NT, labels_N = model.tokenizer(training.texts_N), torch.from_numpy(training.labels_N)
    lengths_N = (tokens_NT != model.tokenizer.padding).sum(dim=1)
    num_steps = config.epochs * math.ceil(len(labels_N) / config.batch_size)
    optimizer, schedule = _optimizer(nn.ModuleList([model, objective]), config, num_steps)
    torch.manual_seed(config.seed)
    epochs: list[Epoch] = []
    best = {}
    with tqdm(total=num_steps, disable=None, leave=False) as bar:
        for _ in range(config.epochs):
            model.train()
            total = 0.0
            for rows in _batches(lengths_N, config.batch_size):
                batch_NT = _without_padding(tokens_NT[rows], model.tokenizer.padding)
                with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                    loss = objective(model, batch_NT, labels_N[rows])
                total += _step(loss, optimizer, config.clip_norm) * len(rows)
                schedule.step()
                bar.update()
            accuracy = float((model.predict(validation.texts_N) == validation.labels_N).mean())
            if not epochs or accuracy > max(epoch.accuracy for epoch in epochs):
                best = {name: weight.clone() for name, weight in model.state_dict().items()}
            epochs.append(Epoch(total / len(labels_N), accuracy))
            bar.set_description(f"accuracy {accuracy:.3f}")
    model.load_state_dict(best)
    model.eval()
    return epochs


def _batches(lengths_N: Tensor, size: int) -> list[Tensor]:
    """Returns rows of random batches; of 8 drawn together, those of similar length share one."""
    groups = torch.randperm(len(lengths_N)).split(8 * size)
    batches = [rows for group in groups for rows in group[lengths_N[group].argsort()].split(size)]
    return [batches[at] for at in torch.randperm(len(batches))]


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss.item()}; lower the learning rate")
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _optimizer(
    modules: nn.Module, config: TextTrainConfig, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    weights = list(modules.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    num_rising = max(1, round(config.warmup * num_steps))

    def rate(step: int) -> float:
        falling = (num_steps - step) / max(1, num_steps - num_rising)
        return min((step + 1) / num_rising, falling)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _without_padding(tokens_NT: Tensor, padding: int) -> Tensor:
    """Returns the tokens up to the longest text's last."""
    return tokens_NT[:, (tokens_NT != padding).any(dim=0)]
