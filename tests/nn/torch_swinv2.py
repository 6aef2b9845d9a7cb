"""The PyTorch SwinV2 of transformers as a reference: its arrays under our names."""

from flax import nnx
import numpy as np
import torch
from transformers import Swinv2Config, Swinv2Model

from moemoe_jax.nn.swinv2 import SwinV2Config

# In order: the attention's `output.dense` goes before the block's.
NAMES = (
    ("embeddings.patch_embeddings.projection", "patch_embedding"),
    ("embeddings.norm", "patch_norm"),
    ("encoder.layers", "stages"),
    ("attention.self", "attention"),
    ("continuous_position_bias_mlp.0", "bias_mlp.in_proj"),
    ("continuous_position_bias_mlp.2", "bias_mlp.out_proj"),
    ("attention.output.dense", "attention.out"),
    ("layernorm_before", "attention_norm"),
    ("layernorm_after", "mlp_norm"),
    ("intermediate.dense", "mlp.in_proj"),
    ("output.dense", "mlp.out_proj"),
    ("downsample", "merge"),
    ("layernorm", "final_norm"),
)


def reference(config: SwinV2Config) -> Swinv2Model:
    """The same model in PyTorch, with its own random weights and without stochastic depth."""
    theirs = Swinv2Config(
        image_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.heads),
        window_size=config.window_size,
        pretrained_window_sizes=list(config.pretrained_window_sizes),
        qkv_bias=config.qkv_bias,
        drop_path_rate=0.0,
    )
    return Swinv2Model(theirs, add_pooling_layer=False)


def randomize_(torch_module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws weights, in place, large enough for each to show in the output, then goes to float64.

    So the reference is exact, and what a comparison shows is the rounding of ours alone. Scores
    stay below ten times a cosine: sharper ones would amplify that rounding tenfold.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in torch_module.named_parameters():
            if name.endswith("logit_scale"):
                parameter.uniform_(1.0, 2.3)
            elif parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return torch_module.double().eval()


def arrays(torch_module: torch.nn.Module, gradients: bool = False) -> dict[str, np.ndarray]:
    """Weights, or their gradients, of a transformers Swinv2Model by our dotted names."""
    found = {}
    for name, parameter in torch_module.named_parameters():
        path = name
        for theirs, ours in NAMES:
            path = path.replace(theirs, ours)
        value = (parameter.grad if gradients else parameter.detach()).float().numpy()
        if path.endswith(".weight"):
            leaf = "scale" if value.ndim == 1 else "kernel"
            path = path.removesuffix("weight") + leaf
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        found[path] = value
    return found


def by_name(state: nnx.State) -> dict[str, np.ndarray]:
    """A state's arrays by dotted names."""
    return {
        ".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)
    }


def load_swinv2(model: nnx.Module, torch_module: torch.nn.Module) -> None:
    """Copies a transformers Swinv2Model into our SwinV2, in place; both must hold the same names.

    Raises:
      ValueError: when a name or a shape on one side is missing on the other.
    """
    state = nnx.state(model, nnx.Param)
    ours, theirs = by_name(state), arrays(torch_module)
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise ValueError(f"unmatched weights: {sorted(ours.keys() ^ theirs.keys())}")
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(theirs[".".join(map(str, path))])
    nnx.update(model, state)
