"""Weights of Hugging Face, or an exported MoEMoE, as a work directory.

The work directory holds the settings, the tokenizer and a checkpoint of step 0 with parameters
alone. Answering and evaluating need no more; a training starts from it.
"""

from collections.abc import Callable, Sequence
import functools
import json
from pathlib import Path

from flax import nnx
import jax
import ml_collections

from moemoe_jax.data.tokenizer import TOKENIZER_FILES, TOKENIZERS, Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import ExperimentConfig, from_config_dict, to_json
from moemoe_jax.files import MAX_JSON_BYTES, find_file, new_folder
from moemoe_jax.interop import derive
from moemoe_jax.interop.fill import fill
from moemoe_jax.interop.maps import TensorMap
from moemoe_jax.interop.moemoe_map import moemoe_map
from moemoe_jax.interop.plan import format_plan, make_plan
from moemoe_jax.interop.slots import Slot, slots
from moemoe_jax.interop.swinv2_map import swinv2_map
from moemoe_jax.interop.text_config import text_model
from moemoe_jax.interop.vision_config import normalisation, vision_config
from moemoe_jax.interop.weights import Weights, open_weights
from moemoe_jax.models.build import abstract_model, create_parameters
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.parallel.sharding import param_shardings
from moemoe_jax.training.checkpoints import Checkpoints
from moemoe_jax.training.trainable import split_trainable
from moemoe_jax.workdir import WorkDir, fingerprint

Say = Callable[[str], None]
Parts = Sequence[tuple[Weights, TensorMap]]

ROLES = {
    "embedding": ("decoder_embedding", "context_embedding", "question_embedding"),
    "encoder": ("context_encoder", "question_encoder"),
    "decoder": ("decoder",),
    "lm_head": ("lm_head",),
    "vision": ("image_encoder",),
}
IN_FLIGHT = 2**26  # bytes of arrays on their way to disk, beside the largest
# What MoEMoE has and no text or image model: initialised.
NEW = ("gate/.*", "alignment/.*", "start/.*", "image_projection/.*")


def import_parts(
    config: ml_collections.ConfigDict, text: str, vision: str, workdir: str, say: Say = print
) -> None:
    """Makes a work directory from a text model and an image model.

    The question encoder, the context encoder and the decoder start from the text model. Where the
    settings have a mixture and the file a dense block, every expert is a copy of it, with
    `init.expert_noise`.

    Args:
      config: the settings for all that the files do not decide.
      text: folder of a T5 or a Switch Transformer, with its tokenizer.
      vision: folder of a SwinV2; empty where no source is an image.
      workdir: to make.
      say: prints a line.

    Raises:
      UserError: for folders, settings or a work directory that do not fit; nothing is written then.
    """
    weights = open_weights(text)
    found = text_model(weights)
    config = config.copy_and_resolve_references()
    values = derive.from_text(found)
    parts = [(weights, found.tensor_map(ROLES))]
    images = [name for name, source in config.data.sources.items() if source.kind == "image"]
    if vision:
        if not images:
            raise UserError("--vision names a model, but no source in data.sources is an image")
        vision_weights = open_weights(vision)
        shape = vision_config(vision_weights)
        normal = normalisation(vision_weights.folder, shape.image_size)
        if normal is None:
            say(f"note: {vision} has no preprocessor_config.json; data.image_mean and _std count")
        values |= derive.from_vision(shape, normal)
        parts.append((vision_weights, swinv2_map(ROLES, vision_weights.names())))
    elif images:
        raise UserError(
            f"data.sources.{images[0]} is an image, but there is no --vision=DIR; give a SwinV2, "
            "or a config whose sources are all texts"
        )
    for line in derive.apply(config, values):
        say(f"setting from the files: {line}")
    folder = config.data.tokenizer or text
    config.data.tokenizer = ""
    _import(config, lambda _: parts, NEW, folder, workdir, say)


def import_model(
    config: ml_collections.ConfigDict, model: str, workdir: str, say: Say = print
) -> None:
    """Makes a work directory from an exported MoEMoE.

    Args:
      config: the settings, which are those of the model's own config.json but for what is to be
        another; a mixture may take a dense block's place.
      model: the folder `moemoe` of an export.
      workdir: to make.
      say: prints a line.

    Raises:
      UserError: as `import_parts`.
    """
    weights = open_weights(model)
    if not {"model", "data"} <= weights.config.keys():
        raise UserError(
            f"{model}/config.json is not that of a MoEMoE: give the folder moemoe of an export, or "
            "--text and --vision for models of Hugging Face"
        )
    config = config.copy_and_resolve_references()
    if config.data.tokenizer:
        say(f"note: data.tokenizer {config.data.tokenizer} is left out: the model has its own")
        config.data.tokenizer = ""
    _import(config, lambda names: [(weights, moemoe_map(names))], (), model, workdir, say)


def load_tokenizer(folder: str) -> Tokenizer:
    """Loads the tokenizer of a downloaded folder; a link that leads out of it is not followed.

    Raises:
      UserError: for such a link, a file far too large, or a folder without a tokenizer.
    """
    found = {name: find_file(folder, name) for name in TOKENIZER_FILES}
    if Path(folder).is_dir() and not any(found[name] for name in TOKENIZERS):
        raise UserError(
            f"{folder} holds no tokenizer ({' or '.join(TOKENIZERS)}): download the model's into "
            "it, or name a folder that has it as --config.data.tokenizer"
        )
    for name, path in found.items():
        if path and path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(
                f"{Path(folder, name)} has more than {MAX_JSON_BYTES} bytes: is it the right file?"
            )
    return Tokenizer.load(folder)


def _import(
    config: ml_collections.ConfigDict,
    parts: Callable[[dict[str, Slot]], Parts],
    new: Sequence[str],
    tokenizer_folder: str,
    workdir: str,
    say: Say,
) -> None:
    if config.init.work_dir:
        say(f"note: init.work_dir {config.init.work_dir} is left out: the weights come from files")
        config.init.work_dir = ""
    tokenizer = load_tokenizer(tokenizer_folder)
    settings = from_config_dict(config, tokenizer.vocab_size)
    model = abstract_model(settings.model)
    names = slots(model)
    folders = parts(names)
    plan = make_plan(folders, names, new)
    table = format_plan(plan)
    say(table)
    mesh = make_mesh(settings.mesh)
    # The folder is made last of all that can fail for a mistake, and takes its name at the end.
    with new_folder(Path(workdir).expanduser()) as part:
        graph, shapes = nnx.split(model)
        seed = settings.train.seed
        state = fill(
            shapes,
            param_shardings(shapes, mesh),
            names,
            plan,
            functools.partial(create_parameters, settings.model, seed, mesh),
            noise=settings.init.expert_noise,
            seed=seed,
        )
        tokenizer.save(WorkDir(part).tokenizer)
        WorkDir(part).write_attributes({})  # that the model is trained on: none yet
        (part / "imported.txt").write_text(_origin(folders) + table + "\n")
        document = to_json(config)
        _save(settings, fingerprint(document), nnx.merge(graph, state), WorkDir(part))
        WorkDir(part).claim(document)
    total = sum(array.size for array in jax.tree.leaves(state))
    say(f"written: {total:,} parameters to {workdir}")


def _origin(folders: Parts) -> str:
    kinds = [(str(w.folder), w.config.get("model_type", "moemoe")) for w, _ in folders]
    return "".join(f"{folder}: {json.dumps(kind)}\n" for folder, kind in kinds)


def _save(settings: ExperimentConfig, config: str, model: nnx.Module, workdir: WorkDir) -> None:
    """Writes the parameters as a checkpoint of step 0, under the name by which they answer."""
    _, trained, frozen = split_trainable(model, settings.train.trainable)
    name = "ema" if settings.optimizer.ema_decay else "params"
    largest = max(array.nbytes for array in jax.tree.leaves((trained, frozen)))
    in_flight = largest + IN_FLIGHT
    with Checkpoints(workdir.checkpoints, config=config, in_flight=in_flight) as checkpoints:
        checkpoints.save(0, {name: trained, "frozen": frozen})
