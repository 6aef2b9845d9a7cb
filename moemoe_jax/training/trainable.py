"""What is trained: a filter on the types of variables, which must cover every leaf.

"experts" trains the experts and the routers of the mixture layers, "backbone" all the rest, "all"
everything. The model is split before it is differentiated, so that a frozen parameter costs no
gradient, no optimizer memory, and does not enter the norm that clipping looks at.
"""

from typing import Any, Literal

from flax import nnx
import jax

from moemoe_jax.errors import UserError
from moemoe_jax.nn.params import ExpertParam, RouterParam
from moemoe_jax.parallel.sharding import table

Trainable = Literal["all", "experts", "backbone"]

_EXPERTS = nnx.Any(ExpertParam, RouterParam)
FILTERS = {
    "all": nnx.Param,
    "experts": _EXPERTS,
    "backbone": nnx.All(nnx.Param, nnx.Not(_EXPERTS)),
}


def group(variable: nnx.Variable) -> str:
    """Returns the group that a variable is counted in: experts, routers or backbone.

    Raises:
      ValueError: for a variable that is no parameter, which no rule says how to train.
    """
    if isinstance(variable, ExpertParam):
        return "experts"
    if isinstance(variable, RouterParam):
        return "routers"
    if isinstance(variable, nnx.Param):
        return "backbone"
    raise ValueError(
        f"a {type(variable).__name__} is no parameter, so no rule says if it is trained: "
        "keep constants as numpy arrays"
    )


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def count_parameters(model: nnx.Module) -> dict[str, int]:
    """Counts the parameters of each group: `{"experts": …, "routers": …, "backbone": …}`."""
    counts = {"experts": 0, "routers": 0, "backbone": 0}
    for variable in jax.tree.leaves(nnx.state(model), is_leaf=_is_variable):
        counts[group(variable)] += jax.tree.leaves(variable)[0].size
    return counts


def _is_trained(variable_group: str, trainable: Trainable) -> bool:
    return trainable == "all" or (trainable == "backbone") == (variable_group == "backbone")


def check_trainable(trainable: str) -> None:
    """Refuses an unknown name.

    Raises:
      UserError: when `trainable` is not all, experts or backbone.
    """
    if trainable not in FILTERS:
        raise UserError(f"train.trainable is {trainable!r}: choose one of {', '.join(FILTERS)}")


def split_trainable(
    model: nnx.Module, trainable: Trainable
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model into its graph, what is trained and what is frozen.

    `nnx.merge(graphdef, trained, frozen)` is the model again.

    Raises:
      UserError: for an unknown name, or "experts" without a mixture layer.
      ValueError: for a variable that no rule covers.
    """
    check_trainable(trainable)
    counts = count_parameters(model)
    if trainable == "experts" and not counts["experts"]:
        raise UserError("train.trainable is experts, but the model has none: set model.moe_layers")
    return nnx.split(model, FILTERS[trainable], nnx.Param)


def parameter_table(model: nnx.Module, trainable: Trainable) -> str:
    """Tabulates how many parameters each group has and which groups are trained.

    Args:
      model: its parameters may be ShapeDtypeStructs.
      trainable: all, experts or backbone.
    """
    check_trainable(trainable)
    rows = [("parameters", "group", "trained", "count")]
    counts = count_parameters(model)
    for kind, n in counts.items():
        told = "yes" if _is_trained(kind, trainable) else "frozen"
        rows.append((f"all {kind}", kind, told, f"{n:,}"))
    trained = sum(n for kind, n in counts.items() if _is_trained(kind, trainable))
    rows += [("trained", "", "", f"{trained:,}"), ("total", "", "", f"{sum(counts.values()):,}")]
    return table(rows)
