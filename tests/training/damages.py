"""Ways in which a checkpoint comes to harm."""

import pathlib
import random
import shutil
import tempfile

from etils import epath
import numpy as np

from moemoe_jax.training import checkpoint_trees as trees
from moemoe_jax.training import manifest
from moemoe_jax.training.checkpoints import Checkpoints


def files(folder):
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())


def arrays(folder):
    """The file that the arrays' values are in."""
    data = (path for path in files(folder / "state") if path.parent.name == "d")
    return max(data, key=lambda path: path.stat().st_size)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def any_bit(folder, rng: random.Random):
    """A file of the checkpoint and a bit of it, each bit of all files with the same chance."""
    sizes = {path: path.stat().st_size * 8 for path in files(folder)}
    bit = rng.randrange(sum(sizes.values()))
    for path, size in sizes.items():
        if bit < size:
            return path, bit
        bit -= size
    raise AssertionError("no such bit")


def truncated(folder, other):
    path = arrays(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def deleted(folder, other):
    arrays(folder).unlink()


def swapped(folder, other):
    """The values are those of another checkpoint of the same run."""
    arrays(folder).write_bytes(arrays(other).read_bytes())


def extra(folder, other):
    (folder / "state" / "d" / "0123").write_bytes(b"x")


def half_written(folder, other):
    """As a copy that was cut off: the last files are missing, the manifest first of all."""
    for path in files(folder)[len(files(folder)) // 2 :]:
        path.unlink()


def replace_arrays(folder, change):
    """Puts the arrays of a like checkpoint, of which `change` was made, in the place of these."""
    saved = manifest.read(epath.Path(folder), int(folder.name))
    tree = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in saved.leaves.items()}
    with tempfile.TemporaryDirectory() as place:
        with Checkpoints(place) as checkpoints:
            checkpoints.save(saved.step, trees.nest(change(tree)))
        shutil.rmtree(folder / "state")
        shutil.copytree(pathlib.Path(place) / folder.name / "state", folder / "state")


def wrong_tree(folder, other):
    replace_arrays(folder, lambda tree: {f"old/{name}": leaf for name, leaf in tree.items()})


def wrong_dtype(folder, other):
    replace_arrays(
        folder, lambda tree: {name: leaf.astype("float16") for name, leaf in tree.items()}
    )


def empty(folder, other):
    shutil.rmtree(folder)
    folder.mkdir()


KINDS = (truncated, deleted, swapped, extra, half_written, wrong_tree, wrong_dtype, empty)
