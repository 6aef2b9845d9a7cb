r"""Compiles the training step and the answering programs for TPUs that are not here.

    python -m launch.compile_check --config=configs/moemoe_base.py --topology=v5e:4x4
    python -m launch.compile_check --config=configs/moemoe_scale.py --topology=v5e:16x16 \
        --topology=v6e:16x16 --json=scale.json
    python -m launch.compile_check --config=configs/moemoe_base.py --topology=v5e:4x4 --search

It needs no TPU, no data and no tokenizer; it needs libtpu (pip install libtpu==0.0.42.1), and
minutes a program. Does it fit, and how fast could it be? It prints, for one chip: memory against
what there is; matrix products, counted in the compiled program with each loop's turns, against the
formula; what its collectives send against the least that any program must; and the least time that
each of the three takes.

Exit status: 0 all programs fit; 3 one does not; 2 a user's mistake; 1 anything else.
"""

from collections.abc import Sequence
import json
import math
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from launch import common
from moemoe_jax.aot import topologies
from moemoe_jax.aot.chips import chip_of
from moemoe_jax.errors import UserError

DOES_NOT_FIT = 3

_TOPOLOGY = flags.DEFINE_multi_string(
    "topology", None, "chip:shape, such as v5e:4x4, v5p:2x2x2, v6e:4x4; repeat it for several."
)
_PRODUCTS = flags.DEFINE_integer(
    "products_per_chip", 0, "Products a chip, in place of the settings' products a batch.", 0
)
_PROGRAMS = flags.DEFINE_list(
    "programs",
    ["train", "answer"],
    "What to compile: train, answer (of questions that come encoded), questions (encodes them).",
)
_EFFORT = flags.DEFINE_float(
    "effort",
    -1.0,
    "How hard the compiler tries, -1 to 1; 0 is what a training run has, and takes far longer.",
    -1.0,
    1.0,
)
_SEARCH = flags.DEFINE_boolean(
    "search", False, "Search the remat policy and products a chip for the best throughput."
)
_BUDGET = flags.DEFINE_integer("search_compiles", 8, "The most compilations of a search.", 3)
_JSON = flags.DEFINE_string("json", "", "A file for everything that was found.")
_TEXT = flags.DEFINE_string("hlo", "", "A folder for the compiled programs as text.")


def main(argv: Sequence[str]) -> int:
    """Compiles for each topology; returns the exit status."""
    del argv
    from moemoe_jax.aot.worker import PROGRAMS

    names = _TOPOLOGY.value or []
    if not names:
        raise UserError("--topology is missing; add --topology=v5e:4x4, or another slice")
    wrong = [name for name in _PROGRAMS.value if name not in PROGRAMS]
    if wrong or not _PROGRAMS.value:
        raise UserError(f"--programs={','.join(wrong)}: choose from {', '.join(PROGRAMS)}")
    if _JSON.value and not Path(_JSON.value).absolute().parent.is_dir():
        raise UserError(f"--json={_JSON.value}: there is no such folder; make it, or name another")
    chips = {name: chip_of(name) for name in names}
    topologies.require_libtpu()
    check = _search if _SEARCH.value else _check
    found = [check(name, chip) for name, chip in chips.items()]
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(entry["fits"] for entry in found) else DOES_NOT_FIT


def _check(topology: str, chip) -> dict[str, Any]:
    """Compiles the settings as they are and prints the tables."""
    from moemoe_jax.aot.report import bounds, fits, report

    result = _compile(topology, _settings(topology, _PRODUCTS.value), _PROGRAMS.value)
    print(report(result, chip, result["products"]), "\n", sep="", flush=True)
    train = result["programs"].get("train", {"fits": False})
    times = vars(bounds(train, chip)) if train["fits"] else {}
    return result | {"fits": fits(result), "chip": vars(chip), "bounds": times}


def _search(topology: str, chip) -> dict[str, Any]:
    """Tries remat policies and batches on the training step and prints what was tried.

    Raises:
      RuntimeError: nothing fits, and on some of it the compiler failed.
    """
    from moemoe_jax.aot.report import bounds, refusal, search_line, search_table
    from moemoe_jax.aot.search import search

    broken: list[RuntimeError] = []

    def measure(remat: str, batch: int) -> dict[str, Any]:
        print(f"{topology}: remat {remat}, {batch} products a chip ...", flush=True)
        begun = time.monotonic()
        row = compiled(remat, batch)
        print(f"  {search_line(row)}  [{time.monotonic() - begun:.0f} s]", flush=True)
        return row

    def compiled(remat: str, batch: int) -> dict[str, Any]:
        settings = _settings(topology, batch)
        settings.model.text.remat = remat
        settings.model.vision.remat = remat == "full"
        try:
            result = _compile(topology, settings, ["train"])
        except RuntimeError as error:
            # The compiler fails on this candidate: no reason to give up on the others.
            broken.append(error)
            return {"fits": False, "note": str(error)}
        train = result["programs"]["train"]
        if not train["fits"]:
            return {"fits": False, "note": refusal(train)}
        least = bounds(train, chip)
        return {
            "fits": True,
            "peak": train["peak"],
            "step": least.step,
            "bound": least.name,
            "throughput": result["products"] / least.step,
        }

    rows, best = search(measure, _PRODUCTS.value or 8, _BUDGET.value)
    print(search_table(rows, best), "\n", sep="", flush=True)
    if best is None and broken:
        raise broken[-1]
    return {"topology": topology, "fits": best is not None, "best": best, "rows": rows}


def _settings(topology: str, products_per_chip: int):
    """The settings, with a batch of so many products a chip (0: as they are)."""
    config = _config()
    if products_per_chip:
        chips = math.prod(int(side) for side in topology.partition(":")[2].split("x"))
        config.data.products_per_batch = products_per_chip * chips * config.train.accumulation
        config.answer.products_per_batch = products_per_chip * chips
    return config


def _config():
    return flags.FLAGS.config.copy_and_resolve_references()


def _compile(topology: str, config, programs: list[str]) -> dict[str, Any]:
    """Has a process compile, and returns what it found.

    Raises:
      UserError: what the worker says of the settings.
      RuntimeError: when it ends without an answer; its output is on stderr.
    """
    from moemoe_jax.experiment import to_json

    request = {
        "config": json.loads(to_json(config)),
        "topology": topology,
        "programs": programs,
        "effort": _EFFORT.value,
        "text": _TEXT.value,
    }
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(request))
        worker = [sys.executable, "-m", "moemoe_jax.aot.worker", str(asked), str(answered)]
        log = Path(folder) / "log.txt"
        with log.open("w") as output:
            done = subprocess.run(
                worker,
                env=os.environ | topologies.ENVIRONMENT,
                stdout=output,
                stderr=output,
                check=False,
            )
        if not answered.exists():
            print(log.read_text(errors="replace")[-8000:], file=sys.stderr)
            raise RuntimeError(_ended(topology, done.returncode))
        result = json.loads(answered.read_text())
    if "mistake" in result:
        raise UserError(result["mistake"])
    products = config.data.products_per_batch
    return result | {"topology": topology, "effort": _EFFORT.value, "products": products}


def _ended(topology: str, status: int) -> str:
    hint = ""
    if status < 0:
        # Seen with effort -1 where an axis of a mesh has one device.
        hint = "; the compiler itself broke off: try --effort=0, or another mesh"
    return f"compiling for {topology} ended with status {status}{hint}"


if __name__ == "__main__":
    common.run(main, config="configs/moemoe_base.py")
