"""Whether a run's settings fit its mesh: asked before anything that takes long is done."""

from jax.sharding import AbstractMesh, Mesh

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.nn.spread import check_backend
from moemoe_jax.parallel.axes import expert_shards, shards


def check_mesh(config: ExperimentConfig, mesh: Mesh | AbstractMesh) -> None:
    """Refuses what could not be laid out, or would be found out only as the step is traced.

    Raises:
      UserError: for a batch or experts that the mesh does not divide, or a dispatch back end that
        cannot do with it.
    """
    _check_batch(config, mesh)
    if _mixes(config.model):
        expert_shards(config.model.moe.num_experts, mesh)
        check_backend(config.model.moe.dispatch, mesh)


def _check_batch(config: ExperimentConfig, mesh: Mesh | AbstractMesh) -> None:
    products, accumulation = config.data.products_per_batch, config.train.accumulation
    parts = shards("batch", mesh)
    if products % (parts * accumulation):
        raise UserError(
            f"data.products_per_batch {products} does not divide among the {parts} devices that a "
            f"batch is split over (mesh data, fsdp and expert) times train.accumulation "
            f"{accumulation}; give a multiple of {parts * accumulation}"
        )


def _mixes(model: MoEMoEConfig) -> bool:
    """Whether any stack that the model has holds a mixture layer."""
    text = model.text
    depths = {"decoder": text.num_decoder_layers}
    if model.question_encoder:
        depths["question_encoder"] = text.num_layers
    if model.has("text"):
        depths["context_encoder"] = text.num_layers
    return any(model.moe_layers.of(stack, depth) for stack, depth in depths.items())
