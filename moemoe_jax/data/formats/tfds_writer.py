"""Writing records to a TFDS folder (array_record files), images as encoded bytes inside it.

It needs no TensorFlow. Images may be made smaller on the way, so that no training decodes large
photographs again.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import json
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.formats.images import embedded, encoded_file
from moemoe_jax.data.formats.tfds import IMAGE_SIZE, check_empty
from moemoe_jax.data.images import shrink_image
from moemoe_jax.data.records import Image, record_to_mapping
from moemoe_jax.data.rejects import Rejects


@functools.cache
def _builder_class():
    """The dataset builder; made on first use, because TFDS takes seconds to import."""
    import numpy as np
    import tensorflow_datasets as tfds

    class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Products: texts, images and attributes, as records."""

        VERSION = tfds.core.Version("1.0.0")
        examples: Mapping[str, Callable[[], Any]]  # split -> what yields (key, example)

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "record": tfds.features.Text(),
                    "images": tfds.features.Sequence(
                        tfds.features.Tensor(shape=(), dtype=np.object_)
                    ),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=features,
                disable_shuffling=True,  # records stay in the order of their source
                metadata=tfds.core.MetadataDict(),
            )

        def _split_generators(self, dl_manager):
            return {split: examples() for split, examples in self.examples.items()}

        def _generate_examples(self):
            raise AssertionError("each split brings its own; TFDS only asks that this exists")

        def _log_download_bytes(self):  # nothing is downloaded
            pass

        def _log_download_done(self):
            pass

    return Records


def write_tfds(
    sources: Mapping[str, Any],
    out_dir: Path | str,
    rejects: Rejects,
    progress: Callable[[str, int], None] = lambda split, count: None,
    *,
    image_size: int = 0,
    max_image_pixels: int = DataConfig.max_image_pixels,
) -> Path:
    """Writes record sources to a TFDS folder that `open_source(out_dir)` reads.

    Args:
      sources: split -> RecordSource.
      out_dir: the folder; the data come to lie in `<out_dir>/records/1.0.0`, and only when they
        are complete.
      rejects: where images that cannot be read go; their records are written without them.
      progress: called with (split, 1) for every record.
      image_size: pixels of a longer side above which images are made smaller, without further
        loss (see `shrink_image`); 0 takes them as they are.
      max_image_pixels: larger images are rejected by their header, where they are to be smaller.

    Returns:
      The folder with `dataset_info.json`.

    Raises:
      UserError: there is a dataset in `out_dir`.
    """
    out_dir = Path(out_dir)
    check_empty(out_dir)
    import tensorflow_datasets as tfds

    def encode(image: Image) -> bytes:
        if image_size:
            return shrink_image(image, image_size, max_image_pixels)
        return encoded_file(image)

    def examples(split: str):
        source = sources[split]

        def example(i: int) -> dict[str, Any]:
            record = embedded(source[i], source.name, i + 1, rejects, encode)
            mapping, images = record_to_mapping(record)
            text = json.dumps(mapping, ensure_ascii=False)
            return {"id": record.id, "record": text, "images": images}

        with contextlib.closing(_in_order(example, len(source))) as made:
            for i, one in enumerate(made):
                yield i, one
                progress(split, 1)

    for stale in (out_dir / "records").glob("incomplete.*"):  # left by a job that was killed
        shutil.rmtree(stale)
    tfds.disable_progress_bar()  # the caller shows its own
    builder = _builder_class()(data_dir=str(out_dir), file_format="array_record")
    sizes = (image_size, *(getattr(source, "image_size", 0) for source in sources.values()))
    builder.info.metadata[IMAGE_SIZE] = min(filter(None, sizes), default=0)
    builder.examples = {split: functools.partial(examples, split) for split in sources}
    with tempfile.TemporaryDirectory() as downloads:  # TFDS insists on one; it stays empty
        builder.download_and_prepare(download_dir=downloads)
    return Path(builder.data_dir)


def _in_order(make: Callable[[int], Any], count: int) -> Iterator[Any]:
    """`make` of 0 to `count` - 1, a few of them made ahead, on all cores."""
    import grain

    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(grain.MapDataset.range(count).map(make).to_iter_dataset(options))
