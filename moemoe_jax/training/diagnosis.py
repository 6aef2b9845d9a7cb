"""Which arrays of a damaged checkpoint are not what was saved."""

from etils import epath
import numpy as np
import tensorstore as ts

from moemoe_jax.training.checksums import checksum
from moemoe_jax.training.manifest import Manifest


def damaged_leaves(arrays: epath.Path, manifest: Manifest) -> list[str]:
    """Reads each array of a checkpoint by itself, without Orbax, and names those that differ.

    Args:
      arrays: the folder that Orbax wrote them to.
      manifest: with the checksums.
    """
    return [name for name in manifest.leaves if not _is_whole(arrays, name, manifest)]


def _is_whole(arrays: epath.Path, name: str, manifest: Manifest) -> bool:
    base = str(arrays) if "://" in str(arrays) else f"file://{arrays}"
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"{base}/", "path": name.replace("/", ".")},
    }
    try:
        array = np.asarray(ts.open(spec, read=True).result().read().result())
    except (ValueError, OSError):
        return False
    return checksum(array) == manifest.leaves[name].checksum
