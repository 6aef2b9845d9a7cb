"""Decoding and resizing of photographs, in seconds an image and core."""

import io
from pathlib import Path
import tempfile

import grain
import numpy as np
from PIL import Image

from benchmarks.isolated import require_torch
from benchmarks.measure import Context, Samples, in_turn, timed
from benchmarks.sizes import get_config
from moemoe_jax.data.images import load_image

_PHOTOGRAPHS, _SIDE, _QUALITY = 96, 1000, 90


def against_loader(context: Context) -> Samples:
    """JPEG files of 1000 x 1000 px, by as many threads of ours as processes of a DataLoader."""
    require_torch()
    data = get_config(context.size).data
    with tempfile.TemporaryDirectory() as folder:
        paths = _photographs(Path(folder))
        work = len(paths) / context.threads
        ours = timed(lambda: _ours(paths, data, context.threads), per=work)
        theirs = timed(lambda: _loader(paths, data.image_size, context.threads), per=work)
        return Samples("s an image", *in_turn(ours, theirs, context.repetitions))


def _photographs(folder: Path) -> list[str]:
    """Smooth colours with some grain, as a camera gives them: 100 to 200 KB each."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(_PHOTOGRAPHS):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.float32)
        pixels = smooth + rng.normal(0.0, 3.0, smooth.shape).astype(np.float32)
        file = io.BytesIO()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(file, "JPEG", quality=_QUALITY)
        paths.append(str(folder / f"{number}.jpg"))
        Path(paths[-1]).write_bytes(file.getvalue())
    return paths


def _ours(paths: list[str], data, threads: int) -> None:
    """As the pipeline of training does it: threads of grain, one call an image."""
    images = grain.MapDataset.source(paths).map(
        lambda path: load_image(path, data.image_size, data.max_image_pixels)
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    for _ in images.to_iter_dataset(options):
        pass


def _loader(paths: list[str], size: int, threads: int) -> None:
    """As tutorials do it; the workers stay for one pass, as they do for an epoch."""
    import torch

    loader = torch.utils.data.DataLoader(
        _Photographs(paths, size), batch_size=16, num_workers=threads
    )
    for _ in loader:
        pass


class _Photographs:
    """A dataset of the kind that `DataLoader` takes: float tensors [3, S, S] in 0..1."""

    def __init__(self, paths: list[str], size: int):
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int):
        import torch

        with Image.open(self._paths[index]) as opened:
            image = opened.convert("RGB").resize((self._size,) * 2, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
