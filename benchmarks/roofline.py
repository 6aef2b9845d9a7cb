r"""What a step and a batch of answers need, and what that takes at least on each chip; two tables.

    python -m benchmarks.roofline
    python -m benchmarks.roofline --products=32 --nocompile

The settings are those of configs/moemoe_base.py, on as many chips as its mesh has. No parameters
are made and nothing is measured. Operations are counted by formula, and in the program as this
machine's compiler leaves it: with its layers unrolled, for one chip's products on one device. Bytes
are the least that any program moves. docs/roofline.md says more.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from absl import flags
import jax

from configs import moemoe_base
from launch import common
from moemoe_jax.aot import flops, minimum, programs, traffic
from moemoe_jax.aot.chips import CHIPS, H100, Chip
from moemoe_jax.aot.hlo import Module
from moemoe_jax.aot.report import Bounds
from moemoe_jax.aot.work import total_flops
from moemoe_jax.experiment import ExperimentConfig, from_config_dict
from moemoe_jax.parallel.axes import shards
from moemoe_jax.parallel.mesh import make_mesh

flags.DEFINE_integer("products", 8, "Products a chip, in a step and answered at once.", 1)
flags.DEFINE_bool("compile", True, "Count operations in the compiled programs as well.")

# Name, variant of the settings, kind of program.
PROGRAMS = (
    ("training step", "all", "train"),
    ("experts-only step", "experts", "train"),
    ("answers", "all", "answer"),
)
_MEMORY = ("parameters", "optimizer", "activations", "keys and values")
_NEEDS = {
    "train": (flops.training_flops, traffic.training_traffic, minimum.training_minimum),
    "answer": (flops.answering_flops, traffic.answering_traffic, minimum.answering_minimum),
}
# The program is read, not run: machine code need not be fast.
_UNUSED_CODE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_LOWER = {"train": programs.lower_training, "answer": programs.lower_answering}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program needs of one chip.

    Attributes:
      flops: operations of matrix products.
      moved: bytes from and to memory, by what they are of.
      sent: bytes to other chips.
    """

    flops: float
    moved: dict[str, float]
    sent: float

    @property
    def intensity(self) -> float:
        """Operations a byte of memory traffic."""
        return self.flops / sum(self.moved.values())

    def bounds(self, chip: Chip) -> Bounds:
        """The least seconds that each of the chip's resources needs."""
        moved = sum(self.moved.values())
        return Bounds(
            self.flops / chip.flops, moved / chip.hbm_bandwidth, self.sent / chip.ici_bandwidth
        )


def settings(mapping: Any, products: int) -> ExperimentConfig:
    """The settings with so many products a batch, in a step and answered."""
    mapping.data.products_per_batch = mapping.answer.products_per_batch = products
    return from_config_dict(mapping, programs.vocabulary(mapping))


def work_of(config: ExperimentConfig, kind: str, devices: Sequence[jax.Device]) -> Work:
    """What a program of a kind, "train" or "answer", needs of each of these devices."""
    run = programs.plan_on(config, make_mesh(config.mesh, devices))
    formula, moved, sent = _NEEDS[kind]
    products = formula(config, shards("batch", run.mesh)).totals()["total"]
    return Work(products / len(devices), moved(config, run), sum(sent(config, run).values()))


def compiled_share(mapping: Any, kind: str, products: int) -> float:
    """Operations of the program, unrolled and compiled for one device here, over the formula's."""
    mapping.model.text.scan_layers = False
    mapping.mesh.update(dict.fromkeys(("fsdp", "expert", "tensor"), 1))
    config = settings(mapping, products)
    run = programs.plan_on(config, make_mesh(config.mesh, jax.devices()[:1]))
    compiled = _LOWER[kind](config, run).compile(compiler_options=_UNUSED_CODE)
    counted = total_flops(Module(compiled.as_text()))
    return counted / _NEEDS[kind][0](config).totals()["total"]


def needs_table(rows: Sequence[tuple[str, Work, float | None]]) -> str:
    """Markdown: what each program needs of one chip, and its compiled operations' share."""
    header = ("one chip", "GFLOP", "compiled / formula", *(f"{name}, GB" for name in _MEMORY))
    header += ("all, GB", "FLOP a byte", "sent, MB")
    lines = []
    for name, work, share in rows:
        moved = [f"{work.moved[key] / 1e9:.2f}" if key in work.moved else "" for key in _MEMORY]
        counted = "" if share is None else f"{share:.4f}"
        whole = f"{sum(work.moved.values()) / 1e9:.2f}"
        rest = (whole, f"{work.intensity:.0f}", f"{work.sent / 1e6:.0f}")
        lines.append((name, f"{work.flops / 1e9:.0f}", counted, *moved, *rest))
    return _markdown(header, lines)


def bounds_table(rows: Sequence[tuple[str, Work, float | None]], products: int) -> str:
    """Markdown: what that takes on each chip at least, with `products` of them a chip."""
    header = ("program", "chip", "FLOP a byte at the ridge", "compute, ms", "HBM, ms")
    header += ("interconnect, ms", "bound by", "products a second and chip, at most")
    lines = []
    for name, work, _ in rows:
        for chip in (*CHIPS.values(), H100):
            least = work.bounds(chip)
            times = (least.compute, least.hbm, least.ici)
            cells = (name, chip.name, f"{chip.flops / chip.hbm_bandwidth:.0f}")
            cells += tuple(f"{1e3 * seconds:.2f}" for seconds in times)
            lines.append((*cells, least.name, f"{products / least.step:,.0f}"))
    return _markdown(header, lines)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str]) -> int:
    """Prints both tables."""
    del argv
    products = flags.FLAGS.products
    mesh = moemoe_base.get_config().mesh
    chips = math.prod(size for size in mesh.values() if size > 1)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", chips)
    rows = []
    for name, variant, kind in PROGRAMS:
        config = settings(moemoe_base.get_config(variant), products * chips)
        share = None
        if flags.FLAGS.compile:
            share = compiled_share(moemoe_base.get_config(variant), kind, products)
        rows.append((name, work_of(config, kind, jax.devices()), share))
    print(needs_table(rows), bounds_table(rows, products), sep="\n\n")
    return 0


if __name__ == "__main__":
    common.run(main)
