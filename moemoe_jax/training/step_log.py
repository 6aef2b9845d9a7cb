"""The line of each logged step: into metrics.jsonl, and to the eye."""

import jax
import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.training.logging import MetricsWriter, Progress
from moemoe_jax.training.timing import Ledger


class StepLog:
    """Logs every `train.log_every`-th step and the last, and stops a run that has gone bad.

    Args:
      config: the settings.
      steps_per_epoch: to tell the epoch.
      first: the step that this start goes on from.
      writer, progress, ledger: where it is written, shown, and where the speed is from.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        steps_per_epoch: int,
        first: int,
        writer: MetricsWriter,
        progress: Progress,
        ledger: Ledger,
    ):
        self._config, self._per_epoch, self._logged = config, steps_per_epoch, first
        self._writer, self._progress, self._ledger = writer, progress, ledger
        ledger.interval()  # the first one begins here, behind the start-up

    def __call__(self, number: int, metrics: dict[str, jax.Array], last: bool) -> None:
        """Logs step `number` when its turn has come; waits for the device only then.

        Raises:
          UserError: for `train.max_skipped` steps in a row without a finite loss and gradient.
        """
        if number % self._config.train.log_every and not last:
            self._progress.update(number)
            return
        names = [source.name for source in self._config.data.sources]
        with self._ledger.measure("step"):
            values = flatten_metrics(jax.device_get(metrics), names)
        data = self._config.data
        examples = data.products_per_batch * data.questions_per_product
        times = self._ledger.interval((number - self._logged) * examples)
        self._logged = number
        values |= {
            "speed/examples_per_second": times["examples_per_second"],
            "speed/input_wait_share": times.get("input_wait_share", 0.0),
            "epoch": number / self._per_epoch,
        }
        self._writer.write(number, values)
        self._progress.update(number, values["loss/total"], values["speed/examples_per_second"])
        if values["train/skipped_in_a_row"] >= self._config.train.max_skipped:
            raise UserError(
                f"the loss or a gradient was not finite for {values['train/skipped_in_a_row']:.0f} "
                f"steps in a row, up to step {number}; lower optimizer.learning_rate, or set "
                "optimizer.clip_norm, in another --workdir, which can start from this one's best "
                "checkpoint (--config.init.work_dir)"
            )


def flatten_metrics(metrics: dict[str, np.ndarray], sources: list[str]) -> dict[str, float]:
    """Scalars by name: a vector over sources gets their names, any other its positions.

    Args:
      metrics: of a step; scalars, [S] over the sources, or [E] over experts.
      sources: the names of the S sources.
    """
    flat = {}
    for name, value in metrics.items():
        if np.ndim(value) == 0:
            flat[name] = float(value)
            continue
        keys = range(len(value)) if name.startswith("moe/") else sources
        flat |= {f"{name}/{key}": float(v) for key, v in zip(keys, value, strict=True)}
    return flat
