"""A trained MoEMoE as folders that transformers loads, and as one file that is imported again.

    text/              context encoder, decoder and the tables, as one T5
    question_encoder/  the question encoder, as an encoder alone
    vision/            the image encoder
    moemoe/            everything, with the settings: see `moemoe_map`

Training moves the question encoder, the context encoder and the decoder apart, so they are no
longer one text model: the context encoder stays with the decoder, which reads it, and the question
encoder goes by itself. What else MoEMoE has (gate, alignment, projections) is in `moemoe` alone.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import numpy as np

from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.inference.loading import Loaded, load
from moemoe_jax.interop import hf_config
from moemoe_jax.interop.maps import Rule, TensorMap, Transform
from moemoe_jax.interop.moemoe_map import moemoe_map
from moemoe_jax.interop.slots import Slot, slots
from moemoe_jax.interop.swinv2_map import swinv2_map
from moemoe_jax.interop.switch_map import switch_map
from moemoe_jax.interop.t5_map import t5_map
from moemoe_jax.interop.weights import new_folder, write_weights
from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.models.seq2seq import Seq2SeqConfig
from moemoe_jax.parallel.sharding import table
from moemoe_jax.workdir import WorkDir

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Part:
    """One folder of an export.

    Attributes:
      name: of the folder.
      loads_as: what reads it.
      config: its config.json.
      tensor_map: the names of its tensors.
      copies: tensors that are written a second time: name there -> the first's.
      files: other JSON files, by name.
      tokenizer: whether the tokenizer belongs into it.
    """

    name: str
    loads_as: str
    config: Mapping[str, Any]
    tensor_map: TensorMap
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: bool = True


def export(workdir: str, out: str, checkpoint: str = "best", say: Say = print) -> None:
    """Writes the folders.

    Args:
      workdir: of the model.
      out: the folder to make.
      checkpoint: "best", "last" or a step.
      say: prints a line.

    Raises:
      UserError: for a work directory or a place that do not fit; nothing is written then.
    """
    place = WorkDir.open(workdir)
    if Path(out).expanduser().exists():
        raise UserError(f"{out} exists already; choose another --out, or remove it")
    loaded = load(place, checkpoint)
    say(f"model: step {loaded.step} of {place.path}")
    model = loaded.model
    names = slots(model)
    parts, reasons = plan_parts(loaded, names, place.read_config())
    arrays = dict(nnx.to_flat_state(nnx.state(model)))
    rows = [("folder", "loads as", "tensors", "parameters")]
    with new_folder(Path(out).expanduser()) as folder:
        for part in parts:
            count, size = _write(folder / part.name, part, names, arrays, loaded.tokenizer)
            rows.append((part.name, part.loads_as, str(count), f"{size:,}"))
    for name, reason in reasons.items():
        say(f"note: no {name}/, as transformers has no class for it: {reason}")
    say(table(rows))
    say(f"written: {out}")


def plan_parts(
    loaded: Loaded, names: Mapping[str, Slot], settings: dict[str, Any]
) -> tuple[list[Part], dict[str, str]]:
    """The folders to write, and why those are left out that are."""
    config = loaded.config.model
    makers = {
        "text": functools.partial(_text, loaded),
        "question_encoder": functools.partial(_question_encoder, loaded),
        "vision": functools.partial(_vision, loaded),
    }
    wanted = {
        "text": config.has("text"),
        "question_encoder": config.question_encoder,
        "vision": config.has("image"),
    }
    parts, reasons = [], {}
    for name, make in makers.items():
        if not wanted[name]:
            continue
        try:
            parts.append(make(names))
        except hf_config.NoClassError as error:
            reasons[name] = str(error)
    settings = {**settings, "init": {**settings.get("init", {}), "work_dir": ""}}
    whole = "python -m launch.import_hf --model"
    parts.append(Part("moemoe", whole, settings, moemoe_map(names)))
    return parts, reasons


def _seq2seq(config: MoEMoEConfig, encoder: str, decoder: bool = True) -> Seq2SeqConfig:
    text, layers = config.text, config.moe_layers
    return Seq2SeqConfig(
        text,
        config.moe,
        layers.of(encoder, text.num_layers),
        layers.of("decoder", text.num_decoder_layers) if decoder else (),
    )


def _longest(loaded: Loaded) -> int:
    return max(loaded.config.data.text_length, loaded.config.data.answer_length)


def _map(kind: str, config: MoEMoEConfig, roles: dict[str, tuple[str, ...]]) -> TensorMap:
    make = switch_map if kind == "switch_transformers" else t5_map
    return make(config.text, roles)


def _text(loaded: Loaded, names: Mapping[str, Slot]) -> Part:
    config = loaded.config.model
    parts = _seq2seq(config, "context_encoder")
    document = hf_config.text_config(parts, _longest(loaded))
    roles = {
        "embedding": ("decoder_embedding",),
        "encoder": ("context_encoder",),
        "decoder": ("decoder",),
        "lm_head": ("lm_head",),
        "table": ("context_embedding",),
    }
    tensor_map = _map(document["model_type"], config, roles)
    copies = hf_config.copies(document["model_type"], config.text)
    if "context_embedding/table" in names:
        # A table of its own (model.share_embeddings=none), which transformers then does not tie.
        own = Rule("encoder.embed_tokens.weight", "table/table")
        tensor_map = dataclasses.replace(tensor_map, rules=(*tensor_map.rules, own))
        copies.pop(own.source, None)
    return Part("text", document["architectures"][0], document, tensor_map, copies)


def _question_encoder(loaded: Loaded, names: Mapping[str, Slot]) -> Part:
    config = loaded.config.model
    parts = _seq2seq(config, "question_encoder", decoder=False)
    document = hf_config.text_config(parts, _longest(loaded), encoder_only=True)
    own = "question_embedding/table" in names
    roles = {
        "embedding": ("question_embedding" if own else "decoder_embedding",),
        "encoder": ("question_encoder",),
    }
    kind = document["model_type"]
    copies = {
        name: of
        for name, of in hf_config.copies(kind, config.text).items()
        if name.startswith("encoder.")
    }
    name = document["architectures"][0]
    return Part("question_encoder", name, document, _map(kind, config, roles), copies)


def _vision(loaded: Loaded, names: Mapping[str, Slot]) -> Part:
    del names
    return Part(
        "vision",
        "Swinv2Model",
        hf_config.vision_config(loaded.config.model.vision),
        swinv2_map({"vision": ("image_encoder",)}),
        files={"preprocessor_config.json": hf_config.preprocessor_config(loaded.config.data)},
        tokenizer=False,
    )


def _write(
    folder: Path,
    part: Part,
    names: Mapping[str, Slot],
    arrays: Mapping[tuple, nnx.Variable],
    tokenizer: Tokenizer,
) -> tuple[int, int]:
    """Writes one folder; returns the numbers of tensors and of their entries."""
    tensors: dict[str, tuple[Slot, Transform]] = {}
    for name, slot in names.items():
        found = part.tensor_map.source(name)
        if found is not None:
            row, source = found
            tensors[source] = slot, row.transform
    for name, original in part.copies.items():
        tensors[name] = tensors[original]

    def read(name: str) -> np.ndarray:
        slot, transform = tensors[name]
        (array,) = jax.tree.leaves(arrays[slot.leaf])
        return transform.inverse(np.asarray(array[slot.index]))

    def finish(path: Path) -> None:
        for name, document in part.files.items():
            (path / name).write_text(json.dumps(document, indent=2) + "\n")
        if part.tokenizer:
            tokenizer.save(path)

    shapes = [
        (name, transform.inverse_shape(slot.shape), slot.dtype)
        for name, (slot, transform) in tensors.items()
    ]
    write_weights(folder, part.config, shapes, read, finish=finish)
    return len(shapes), sum(int(np.prod(shape)) for _, shape, _ in shapes)
