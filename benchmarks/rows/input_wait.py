"""How much of a training's time it waits for its input."""

import csv
import json
from pathlib import Path
import sys
import tempfile

import numpy as np
from PIL import Image

from benchmarks.isolated import run_quietly
from benchmarks.measure import Context, Samples
from moemoe_jax.data.formats.fashion import ATTRIBUTES, TITLE

_EVERY = 10  # steps of an interval
_PRODUCTS, _SHAPE = 400, (640, 480)


def share(context: Context) -> Samples:
    """Trains on the fashion folder, the image decoded in the first epoch and kept from then on.

    A repetition is an interval of 10 steps. The first is left out: it has the compilation, and the
    first batch, which nobody could have made ahead. Both costs are parts of an interval's time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = context.fashion or str(_made_up(folder / "fashion"))
        run_quietly(
            [
                sys.executable,
                "-m",
                "launch.train",
                f"--config=benchmarks/sizes.py:{context.size},fashion",
                f"--workdir={folder / 'run'}",
                f"--config.data.source=fashion:{source}",
                f"--config.train.steps={_EVERY * (1 + context.repetitions)}",
                f"--config.train.log_every={_EVERY}",
            ]
        )
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "speed/input_wait_share" in row]
    waits = [row["speed/input_wait_share"] for row in rows[1:]]
    made_up = "" if context.fashion else "a folder made up in its form: see --fashion"
    return Samples("of the time", waits, [1.0 - wait for wait in waits], made_up)


def _made_up(folder: Path) -> Path:
    """A folder of products with photographs in colours of their own."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "styles.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", *ATTRIBUTES, TITLE])
        for number in range(_PRODUCTS):
            values = [f"{name} {rng.integers(10)}" for name in ATTRIBUTES]
            table.writerow([number, *values, f"A product with {values[0]} and {values[-1]}"])
            coarse = Image.fromarray(rng.integers(0, 256, (16, 12, 3), dtype=np.uint8))
            picture = coarse.resize(_SHAPE[::-1], Image.Resampling.BICUBIC)
            picture.save(folder / "images" / f"{number}.jpg", quality=90)
    return folder
