"""The sparse mixture of experts that takes a feed-forward block's place.

MoE(x) = sum_i w_i(x) f_i(x), w(x) = softmax(top_k(W x + noise)), L_aux = E sum_i f_i P_i.
`routing` decides who goes where, `dispatch` (on many devices, `spread`) brings them there and back,
and the experts f_i are the dense block's, stacked: `wi.kernel` [in, out] becomes [E, in, out].

Shapes: D width, F hidden width, E experts, k experts per token, L tokens of a row, T all tokens.
"""

import dataclasses

from flax import nnx, struct
import jax
import jax.numpy as jnp

from moemoe_jax.nn import dispatch, routing, spread
from moemoe_jax.nn.experts import Experts
from moemoe_jax.nn.feed_forward import ACTIVATIONS
from moemoe_jax.nn.params import ExpertParam, RouterParam, normal, param
from moemoe_jax.nn.rng import row_dropout, split
from moemoe_jax.parallel.axes import gathered


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """How a mixture layer routes.

    Attributes:
      num_experts: E.
      top_k: k, experts per token.
      gate: how logits become weights. "topk_softmax" (MoEMoE): they sum to one, so with k = 1
        only the auxiliary loss trains the router. "softmax_topk" (Switch): not renormalised.
      noise: on the router in training: "none", "gaussian", "learned" or "jitter".
      capacity_factor: slots per expert, in multiples of an even load; None drops no token.
      aux_prob: P_i of the auxiliary loss: "full_softmax" or "gate" (the sparse weights).
      routing_level: what the router looks at: each "token"; the mean of the row's valid tokens
        ("sequence", which looks ahead: encoders only); or the pooled "question". In the last two
        all tokens of a row share their experts.
      router_std: standard deviation of the router's initial weights; never zero, or all experts
        tie and receive the same tokens.
      dispatch: "auto", "index", "dense", "ragged", "grouped" or "in_turn".
    """

    num_experts: int = 4
    top_k: int = 2
    gate: str = "topk_softmax"
    noise: str = "none"
    capacity_factor: float | None = None
    aux_prob: str = "full_softmax"
    routing_level: str = "token"
    router_std: float = 0.02
    dispatch: str = "auto"

    def __post_init__(self):
        routing.pick(routing.GATES, self.gate, "gate")
        routing.pick(routing.NOISES, self.noise, "router noise")
        routing.pick(routing.AUX_PROBS, self.aux_prob, "aux_prob")
        routing.pick(routing.LEVELS, self.routing_level, "routing level")
        back_ends = {"auto": None, **dispatch.DISPATCHERS}
        routing.pick(back_ends, self.dispatch, "dispatch back end")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k {self.top_k} is not in 1..num_experts ({self.num_experts})")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ValueError(
                f"capacity_factor {self.capacity_factor} is not positive: None means dropless"
            )
        if self.router_std <= 0:
            raise ValueError(f"router_std {self.router_std} is not positive: experts would tie")


@struct.dataclass
class MoEStats:
    """What a mixture layer reports, in float32, over the valid tokens alone.

    Attributes:
      aux_loss: [], load balancing: 1 for uniform routing, E at full collapse.
      z_loss: [], mean squared logsumexp of the router's logits.
      load: [E], fraction of the choices that fall on each expert.
      dropped: [], fraction of the choices past the capacity.
      entropy: [], of the router's softmax, in nats.
    """

    aux_loss: jax.Array
    z_loss: jax.Array
    load: jax.Array
    dropped: jax.Array
    entropy: jax.Array


class Router(nnx.Module):
    """The linear map W from tokens to expert logits, and that of the noise where it is learned."""

    def __init__(self, config: MoEConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        self.axes = ("embed", None)
        shape, init = (d_model, config.num_experts), normal(config.router_std)
        self.kernel = param(rngs, shape, init, self.axes, RouterParam)
        if routing.NOISES[config.noise].has_kernel:
            self.noise_kernel = param(rngs, shape, init, self.axes, RouterParam)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> routing.Routing:
        """Routes float [T, D], with noise if there is a key."""
        noise_kernel = getattr(self, "noise_kernel", None)
        return routing.route(
            x,
            gathered(self.kernel[...], self.axes),
            self.config.top_k,
            gate=self.config.gate,
            noise=self.config.noise,
            noise_kernel=None if noise_kernel is None else gathered(noise_kernel[...], self.axes),
            key=key,
        )


class ExpertLinear(nnx.Module):
    """E linear maps without bias: `kernel` [E, in, out], whose dimensions are named by `axes`."""

    def __init__(self, num_experts, d_in, d_out, axes, *, rngs: nnx.Rngs):
        self.axes = ("expert", *axes)
        init = normal(d_in**-0.5)
        self.kernel = param(rngs, (num_experts, d_in, d_out), init, self.axes, ExpertParam)


class MoEFeedForward(nnx.Module):
    """Maps [..., D] to [..., D], each token through k of E feed-forward experts.

    Args:
      config: how to route.
      d_model: D.
      d_ff: F, of each expert.
      activation: "relu" or "gated-gelu", as in the dense block.
      dropout: rate on the experts' hidden channels.
      dtype: compute dtype of the experts; the router is float32.
      rngs: where the parameters' keys come from.

    Raises:
      ValueError: an unknown activation.
    """

    def __init__(
        self,
        config: MoEConfig,
        d_model: int,
        d_ff: int,
        activation: str,
        dropout: float = 0.0,
        dtype: jnp.dtype | str = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
        self.config = config
        self.names = ("wi_0", "wi_1", "wo") if activation == "gated-gelu" else ("wi", "wo")
        self.dropout = dropout
        self.dtype = jnp.dtype(dtype)
        self.router = Router(config, d_model, rngs=rngs)
        count = config.num_experts
        for name in self.names[:-1]:
            setattr(self, name, ExpertLinear(count, d_model, d_ff, ("embed", "mlp"), rngs=rngs))
        self.wo = ExpertLinear(count, d_ff, d_model, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        valid: jax.Array,
        key: jax.Array | None = None,
        question: jax.Array | None = None,
    ) -> tuple[jax.Array, MoEStats]:
        """Routes, computes and mixes.

        Args:
          x: float [..., L, D].
          valid: bool [..., L]; padding takes no slot, enters no statistic and comes out as zeros.
          key: of router noise and dropout; None is deterministic.
          question: float [..., D], one pooled vector per row; read at routing level "question".

        Returns:
          [..., L, D] in the compute dtype, and the statistics.

        Raises:
          ValueError: routing level "question" without a question.
        """
        noise_key, dropout_key = split(key, 2)
        routes = self._route(x, valid, noise_key, question)
        flat = valid.ravel()
        maps = {name: getattr(self, name) for name in self.names}
        kernels = {name: linear.kernel[...].astype(self.dtype) for name, linear in maps.items()}
        y, kept = spread.mix(
            Experts(self._experts, kernels, dropout_key),
            {name: linear.axes for name, linear in maps.items()},
            x.reshape(-1, x.shape[-1]).astype(self.dtype),
            routes,
            flat,
            capacity_factor=self.config.capacity_factor,
            backend=self.config.dispatch,
        )
        stats = MoEStats(
            aux_loss=routing.load_balancing_loss(routes, flat, self.config.aux_prob),
            z_loss=routing.z_loss(routes, flat),
            load=routing.expert_load(routes, flat),
            dropped=dispatch.dropped(kept, flat),
            entropy=routing.entropy(routes, flat),
        )
        return y.reshape(x.shape), stats

    def _route(self, x, valid, key, question) -> routing.Routing:
        """Routes at the configured level, then gives each token of a row that row's decision."""
        *_, length, width = x.shape
        x, valid = x.reshape(-1, length, width), valid.reshape(-1, length)
        inputs = routing.LEVELS[self.config.routing_level](x, valid, question)
        routes = self.router(inputs.reshape(-1, width), key)
        repeats = length // inputs.shape[1]
        return jax.tree.map(lambda a: jnp.repeat(a, repeats, axis=0), routes)

    def _experts(self, kernels, key, rows, numbers, dot) -> jax.Array:
        """The dense block's arithmetic, with every kernel applied by `dot`."""
        if "wi" in kernels:
            hidden = jax.nn.relu(dot(rows, kernels["wi"]))
        else:
            gate = jax.nn.gelu(dot(rows, kernels["wi_0"]), approximate=True)
            hidden = gate * dot(rows, kernels["wi_1"])
        return dot(row_dropout(hidden, self.dropout, key, numbers), kernels["wo"])
