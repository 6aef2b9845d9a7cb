"""Matrix products of the compiled training step against the formula."""

from benchmarks.measure import Context, Samples
from benchmarks.ours import experiment
from benchmarks.sizes import settings
from moemoe_jax.aot.flops import training_flops
from moemoe_jax.aot.hlo import Module
from moemoe_jax.aot.programs import lower_training, plan_on
from moemoe_jax.aot.work import total_flops
from moemoe_jax.parallel.mesh import make_mesh

_QUESTIONS = 6


def against_formula(context: Context) -> Samples:
    """Counts, in the unrolled step as this machine's compiler leaves it; there is no spread."""
    config = experiment(settings(context.size, _QUESTIONS))
    run = plan_on(config, make_mesh(config.mesh))
    counted = total_flops(Module(lower_training(config, run).compile().as_text()))
    return Samples("operations", [counted], [training_flops(config).totals()["total"]])
