"""The kernels for experts, compiled for chips that are not here, at the sizes of real layers.

    python -m pytest -q -n0 -s -m drill tests/aot/grouped_drill_test.py

Needs libtpu, and half a minute of a quiet core for each chip.
"""

import subprocess
import sys

import pytest

from tests.launch.cli import ROOT

pytestmark = pytest.mark.drill

SCRIPT = """
import itertools, os, sys
from moemoe_jax.aot import topologies
os.environ.update(topologies.ENVIRONMENT)
import jax, jax.numpy as jnp
from moemoe_jax.nn.blocks import Blocks
from moemoe_jax.nn.grouped import grouped_dot

place = jax.sharding.SingleDeviceSharding(topologies.devices(sys.argv[1])[0])

def product(rows, kernel, owner, source):
    dot = lambda rows, kernel: grouped_dot(rows, kernel, Blocks(owner, source))
    out, pull = jax.vjp(dot, rows, kernel)
    return out, pull(out)

blocks = ((23, 16, 8), (215, 64, 64), (45, 256, 8))
widths = ((768, 2048), (2048, 768), (1024, 4096), (4096, 1024))
for (count, size, experts), (i, o), kind in itertools.product(blocks, widths, "f4 bf16".split()):
    dtype = {"f4": jnp.float32, "bf16": jnp.bfloat16}[kind]
    shapes = ((count, size, i), dtype), ((experts, i, o), dtype), *(((count,), jnp.int32),) * 2
    given = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes]
    text = jax.jit(product).lower(*given).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    print(sys.argv[1], count, size, experts, i, o, kind, flush=True)
"""


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_kernels_fit_every_chip(topology):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, topology],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 * 4 * 2
