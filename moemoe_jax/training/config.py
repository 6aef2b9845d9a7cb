"""Settings of a training run."""

import dataclasses
import math

# What an evaluation during training gives, and which end of it is the best.
METRICS = {"accuracy": "max", "accuracy_micro": "max", "recall_at_90p": "max", "ece": "min"}
CACHES = ("auto", "none", "memory", "disk")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, what, and what to keep.

    Attributes:
      trainable: "all", "experts" (experts and routers) or "backbone" (everything else).
      seed: of the parameters, the order of the examples, augmentation and dropout.
      epochs: passes over the products of the training split.
      steps: optimizer steps; 0 follows `epochs`.
      frozen_dropout: whether encoders in which nothing is trained drop out all the same. Without,
        they encode a product as they will when it is answered, always alike; the decoder, of which
        experts are a part, drops out in any case.
      cache_encodings: whether encodings that never change are computed once and kept: "none",
        "memory", "disk" (in the work directory, for the next start as well), or "auto", which is
        "memory" where nothing changes them (`training.encoders` says what does) and products come
        more than once, and "none" elsewhere. The same numbers, but for rounding.
      cache_encodings_mib: room for them, a process; products that do not fit are encoded each time.
      accumulation: micro-batches added up into one step.
      eval_every: steps between evaluations on the validation split, each followed by a checkpoint;
        0 means once per epoch.
      eval_products: products of the validation split that an evaluation during training looks at;
        0 means all.
      save_every: steps between further checkpoints; 0 for none.
      log_every: steps between log lines.
      keep_last: the latest checkpoints kept.
      keep_best: checkpoints kept by `best_metric`.
      best_metric: of the evaluation, a name of `METRICS`.
      samples: predictions shown at each evaluation.
      max_skipped: steps in a row that may be skipped for a non-finite loss or gradient.
      stall_seconds: without progress in a step, an evaluation, a save..., after which the stacks of
        all threads are printed, and again each time so long has gone by; 0 for never. More than the
        longest compilation takes.
      stall_abort_seconds: without progress after which the process exits with status 70, for a
        scheduler to start it again; 0 for never.
    """

    trainable: str = "all"
    seed: int = 0
    epochs: int = 10
    steps: int = 0
    frozen_dropout: bool = True
    cache_encodings: str = "auto"
    cache_encodings_mib: int = 1024
    accumulation: int = 1
    eval_every: int = 0
    eval_products: int = 256
    save_every: int = 0
    log_every: int = 20
    keep_last: int = 2
    keep_best: int = 1
    best_metric: str = "accuracy"
    samples: int = 4
    max_skipped: int = 10
    stall_seconds: float = 600.0
    stall_abort_seconds: float = 0.0

    def __post_init__(self):
        if self.trainable not in ("all", "experts", "backbone"):
            raise ValueError(
                f"train.trainable is {self.trainable!r}; choose all, experts or backbone"
            )
        if self.cache_encodings not in CACHES:
            raise ValueError(
                f"train.cache_encodings is {self.cache_encodings!r}; "
                f"choose one of {', '.join(CACHES)}"
            )
        if self.best_metric not in METRICS:
            raise ValueError(
                f"train.best_metric is {self.best_metric!r}; choose one of {', '.join(METRICS)}"
            )
        positive = ("accumulation", "cache_encodings_mib", "log_every", "keep_last", "max_skipped")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        counts = ("epochs", "steps", "eval_every", "eval_products", "save_every", "keep_best")
        for name in (*counts, "samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must not be negative")
        for name in ("stall_seconds", "stall_abort_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"train.{name} is {getattr(self, name)}; give seconds, or 0 for never"
                )
        if not self.epochs and not self.steps:
            raise ValueError("train.epochs and train.steps are both 0; set one of them")

    @property
    def best_mode(self) -> str:
        """Whether the best checkpoint has the largest `best_metric` ("max") or the smallest."""
        return METRICS[self.best_metric]


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where the parameters start.

    Attributes:
      work_dir: a trained work directory to start from; its feed-forward blocks become experts
        where this model has a mixture (upcycling). Empty: from random values.
      expert_noise: standard deviation of the noise on the experts' copies, relative to that of the
        block.
    """

    work_dir: str = ""
    expert_noise: float = 0.0

    def __post_init__(self):
        if self.expert_noise < 0:
            raise ValueError(f"init.expert_noise is {self.expert_noise}; it must not be negative")
