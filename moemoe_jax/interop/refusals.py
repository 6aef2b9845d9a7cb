"""What to say of a place that holds no weights to read, and how to turn what is there into some.

Loading a pickle runs whatever code its writer put in, so none is loaded here, not even to look.
The commands below are for the user, who knows where a file came from; they load with torch's
`weights_only`, which knows only tensors.
"""

import json
import os
from pathlib import Path
import re
import shlex

from moemoe_jax.errors import UserError
from moemoe_jax.files import read_json

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_OTHERS = (".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".npz", ".npy", ".tflite")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_WHY = "loading it could run any code that its writer put in"


def no_folder(path: Path) -> UserError:
    """The error for a path that is no folder."""
    if os.path.isfile(path):
        if path.suffix.lower() in PICKLES:
            return _pickle(path.parent, path)
        return UserError(f"{path} is a file: give the folder that holds it and its config.json")
    hub = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        hub = f"; `hf download {path} --local-dir {path.name}` makes one of a model on the hub"
    return UserError(f"{path} is no folder of weights{hub or ': check the path'}")


def no_weights(folder: Path) -> UserError:
    """The error for a folder without safetensors."""
    try:
        files = sorted(name for name in os.listdir(folder) if name.isprintable())
    except OSError as error:
        return UserError(f"{folder} cannot be read: {error.strerror}")
    pickles = [name for name in files if name.lower().endswith(PICKLES)]
    if pickles:
        torch = [name for name in pickles if name == _TORCH[0]]
        return _pickle(folder, folder / (torch or pickles)[0])
    others = [name for name in files if name.lower().endswith((*_OTHERS, ".safetensors"))]
    found = f"; {others[0]} is not read" if others else ""
    return UserError(
        f"{folder} holds no model.safetensors and no model.safetensors.index.json{found}: "
        "download the model's safetensors, or save it with transformers' save_pretrained"
    )


def _pickle(folder: Path, file: Path) -> UserError:
    """The error for a pickle, with the command that converts it."""
    if file.name == _TORCH[0] or (folder / _TORCH[1]).is_file():
        source, target = os.path.abspath(folder), Path(os.path.abspath(folder)).name
        code = (
            f"import shutil, transformers as t; a, b = {_text(source)}, "
            f"{_text(target + '-safetensors')}; "
            'shutil.copytree(a, b, ignore=shutil.ignore_patterns("*.bin*", "*.h5", "*.msgpack")); '
            f"t.{_model_class(folder)}.from_pretrained(a, weights_only=True).save_pretrained(b)"
        )
        makes = f"makes the folder {target}-safetensors to give instead"
    else:
        code = (
            "import torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v "
            f'in torch.load({_text(os.path.abspath(file))}, map_location="cpu", '
            f"weights_only=True).items()}}, "
            f'{_text(os.path.abspath(folder / "model.safetensors"))}, {{"format": "pt"}})'
        )
        makes = "writes a model.safetensors beside it"
    return UserError(
        f"{file} is a pickle, which is never loaded as {_WHY}; if you trust it, "
        f"`python -c {shlex.quote(code)}`, with torch installed, {makes}"
    )


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _model_class(folder: Path) -> str:
    """The class of transformers that loads all of a model, by its config.json."""
    try:
        names = read_json(folder, "config.json").get("architectures")
    except UserError:
        names = None
    known = isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)
    # The file may come from anyone, and the name goes into a command: a plain word or nothing.
    plain = known and re.fullmatch(r"[A-Za-z]\w*", names[0], re.ASCII)
    return names[0] if plain else "AutoModel"
