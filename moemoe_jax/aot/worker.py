"""The process that compiles: a request as JSON in, a result as JSON out.

    python -m moemoe_jax.aot.worker REQUEST.json RESULT.json

It is a process of its own as the environment must be set before JAX is imported, as the compiler
ends its process where it meets an error of its own, and so that memory is given back.
"""

import json
import os
from pathlib import Path
import re
import sys
import time
from typing import Any

PROGRAMS = ("train", "answer", "questions")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_OVERFLOW = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available \w+ \(([\d.]+)([KMGT]?)\)")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")


def overflow(message: str) -> tuple[float, float] | None:
    """The bytes needed and those there are, if a compiler's message says that memory runs out."""
    found = _USED.search(message) or _OVERFLOW.search(message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return None
    need, need_unit, have, have_unit = found.groups()
    return float(need) * _UNITS[need_unit], float(have) * _UNITS[have_unit]


def compile_all(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles the programs of a request.

    Args:
      request: "config" (settings), "topology", "programs" of `PROGRAMS`, "effort" in [-1, 1] and
        "text", a folder for the compiled text or "".

    Returns:
      "programs": by name what `_compiled` gives; "formula" and "minimum": what `flops` and
      `minimum` say; "held": bytes that a device keeps from step to step, by what they are of;
      "mesh": sizes by axis; "devices": their number.

    Raises:
      UserError: for settings that do not fit each other or the slice.
    """
    from moemoe_jax.aot import flops, minimum, programs, topologies
    from moemoe_jax.experiment import from_config_dict, from_json
    from moemoe_jax.parallel.axes import shards, using
    from moemoe_jax.parallel.mesh import make_mesh
    from moemoe_jax.parallel.sharding import bytes_on_device

    mapping = from_json(request["config"])
    config = from_config_dict(mapping, programs.vocabulary(request["config"]))
    mesh = make_mesh(config.mesh, topologies.devices(request["topology"]))
    run = programs.plan_on(config, mesh)
    lowering = {
        "train": programs.lower_training,
        "answer": programs.lower_answering,
        "questions": programs.lower_questions,
    }
    compiled = {}
    for name in request["programs"]:
        started = time.monotonic()
        lowered = lowering[name](config, run)
        compiled[name] = _compiled(lowered, request, name)
        compiled[name]["seconds"] = time.monotonic() - started
    with using(mesh):
        formula = flops.training_flops(config, shards("batch", mesh)).totals()
        least = minimum.training_minimum(config, run)
    return {
        "programs": compiled,
        "formula": formula,
        "minimum": least,
        "held": {name: bytes_on_device(tree) for name, tree in run.held().items()},
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
    }


def _compiled(lowered: Any, request: dict[str, Any], name: str) -> dict[str, Any]:
    """Compiles one program and reads it: memory, work and collectives of one device."""
    import jax

    effort = request["effort"]
    options = {"exec_time_optimization_effort": effort, "memory_fitting_effort": effort}
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        sizes = overflow(str(error))
        if sizes is None:
            raise
        return {"fits": False, "needs": sizes[0], "available": sizes[1]}
    text = compiled.as_text()
    if request["text"]:
        folder = Path(request["text"])
        folder.mkdir(parents=True, exist_ok=True)
        file = f"{request['topology'].replace(':', '-')}-{name}.hlo.txt"
        (folder / file).write_text(text)
    return {"fits": True} | _memory(compiled.memory_analysis()) | read(text)


def _memory(sizes: Any) -> dict[str, float]:
    """Bytes of one device; what the step donates is in its arguments alone."""
    return {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "results": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
        "peak": sizes.peak_memory_in_bytes,
    }


def read(text: str) -> dict[str, Any]:
    """What a compiled program, as text, makes one device do."""
    from moemoe_jax.aot import collectives, hlo, work

    module = hlo.Module(text)
    found = collectives.collectives(module)
    return {
        "flops": work.total_flops(module),
        "hbm_bytes": work.hbm_bytes(module),
        "collectives": collectives.by_kind(found),
        "gathers": [
            {"shape": c.shape, "bytes": c.payload, "times": c.times, "source": c.source}
            for c in found
            if c.kind == "all-gather" and c.payload >= 2**20
        ],
    }


def main(request: str, result: str) -> None:
    """Answers the request in one file with a result in another; a user's mistake is a result."""
    from moemoe_jax.errors import UserError

    try:
        answer = compile_all(json.loads(Path(request).read_text()))
    except UserError as error:
        answer = {"mistake": str(error)}
    Path(result).write_text(json.dumps(answer))


if __name__ == "__main__":
    from moemoe_jax.aot.topologies import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    main(*sys.argv[1:])
