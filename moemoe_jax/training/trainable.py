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
from moemoe_jax.parallel.sharding import path_name, table

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


def _leaves(model: nnx.Module) -> list[tuple[str, nnx.Variable]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        nnx.state(model), is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return [(path_name(path), leaf) for path, leaf in leaves]


def count_parameters(model: nnx.Module) -> dict[str, int]:
    """Counts the parameters of each group: `{"experts": …, "routers": …, "backbone": …}`."""
    counts = {"experts": 0, "routers": 0, "backbone": 0}
    for _, variable in _leaves(model):
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
        raise UserError(f"trainable is {trainable!r}: choose one of {', '.join(FILTERS)}")


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
        raise UserError("trainable is experts, but the model has none: set model.moe_layers")
    return nnx.split(model, FILTERS[trainable], nnx.Param)


def parameter_table(model: nnx.Module, trainable: Trainable, leaves: bool = False) -> str:
    """Tabulates how many parameters each group has and which groups are trained.

    Args:
      model: its parameters may be ShapeDtypeStructs.
      trainable: all, experts or backbone.
      leaves: one row for each parameter before the groups.
    """
    check_trainable(trainable)
    rows: list[tuple[str, ...]] = [("parameters", "group", "trained", "count")]
    for name, variable in _leaves(model) if leaves else []:
        kind = group(variable)
        size: Any = jax.tree.leaves(variable)[0].size
        rows.append((name, kind, _word(kind, trainable), f"{size:,}"))
    counts = count_parameters(model)
    rows += [(f"all {kind}", kind, _word(kind, trainable), f"{n:,}") for kind, n in counts.items()]
    trained = sum(n for kind, n in counts.items() if _is_trained(kind, trainable))
    rows += [("trained", "", "", f"{trained:,}"), ("total", "", "", f"{sum(counts.values()):,}")]
    return table(rows)


def _word(kind: str, trainable: Trainable) -> str:
    return "yes" if _is_trained(kind, trainable) else "frozen"
