"""TensorFlow Datasets folders (array_record files), read at random without TensorFlow.

Folders that `tfds_writer` made hold each record as `id`, the record as JSON, and the encoded images
that the JSON points to; `metadata.json` says how large those are at most, where they were made
smaller. Any other folder is read by the kinds of its features: texts and images become sources (the
first image is named "image"), class labels become attributes.

Shapes: N records.
"""

import bisect
from collections.abc import Callable, Mapping
import functools
import itertools
import json
from pathlib import Path
from typing import Any

from moemoe_jax.data.file_stats import FileStats
from moemoe_jax.data.formats.files import split_name
from moemoe_jax.data.records import Record, RecordError, parse_record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.errors import UserError

_INFO = "dataset_info.json"
_OURS = {"id", "record", "images"}
IMAGE_SIZE = "image_size"  # in the metadata


def _folder(path: Path) -> Path | None:
    """The folder with the data: `path`, or the one `<name>/<version>` (`<version>`) below it."""
    if not path.is_dir():
        return None
    for pattern in (_INFO, f"*/{_INFO}", f"*/*/{_INFO}"):
        # TFDS writes to a folder "…incomplete…" and renames it when all is there.
        found = [f for f in sorted(path.glob(pattern)) if "incomplete" not in f.parent.name]
        if len(found) > 1:
            raise UserError(
                f"{path} holds several TFDS datasets; name one: "
                + ", ".join(str(info.parent) for info in found)
            )
        if found:
            return found[0].parent
    return None


def detect(path: Path) -> bool:
    """A folder with `dataset_info.json`, or with one dataset's name and version below it."""
    return _folder(path) is not None


@functools.lru_cache(maxsize=8)
def _builder(folder: Path):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # it raises as many kinds as there are ways to be broken
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} is no complete TFDS dataset ({text}); make it again") from error


def _own_names(path: Path) -> dict[str, str]:
    """The house's name of each split -> the dataset's."""
    folder = _folder(path)
    if folder is None:
        raise UserError(f"{path} holds no {_INFO}; name the folder that does")
    splits_ = _builder(folder).info.splits
    return {split_name(name): name for name in splits_ if splits_[name].num_examples}


def splits(path: Path) -> tuple[str, ...]:
    """The splits of the dataset that have records."""
    return tuple(_own_names(path))


def open_records(path: Path, split: str | None, rejects: Rejects) -> "TfdsSource":
    """Opens one split, or all.

    Raises:
      UserError: not array_record files, or no feature that a record can be made of.
    """
    names = _own_names(path)
    source = TfdsSource(str(path), _folder(path), [names[split]] if split else [*names.values()])
    rejects.saw(f"{path}[{split or 'all'}]", len(source))
    return source


class TfdsSource:
    """A RecordSource over splits of a TFDS folder; nothing is read before it is asked for.

    Attributes:
      files_digest: of the files of the folder (`data.file_stats`).
      image_size: pixels that the longer side of its images was cut down to; 0 where it was not.
    """

    splits: tuple[str, ...] = ()

    def __init__(self, name: str, folder: Path, split_names: list[str]):
        self.name = name
        self._folder = folder
        self._split_names = split_names
        self.files_digest = _files_digest(folder)
        info = _builder(folder).info
        self._ends = list(
            itertools.accumulate(info.splits[split].num_examples for split in split_names)
        )
        self._reader, skipped = _reader(folder, info.features)
        self.image_size = int((info.metadata or {}).get(IMAGE_SIZE, 0))
        try:
            self._parts = [
                _builder(folder).as_data_source(split, decoders=skipped) for split in split_names
            ]
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"{folder} holds no array_record files ({str(error).splitlines()[0]}); "
                "prepare it with file_format='array_record'"
            ) from error

    def __reduce__(self):
        return type(self), (self.name, self._folder, self._split_names)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.name}")
        index = int(index) % len(self)
        part = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[part - 1] if part else 0)
        try:
            return self._reader(self._parts[part][row], f"{self._split_names[part]}-{row}")
        except RecordError as error:
            raise UserError(
                f"{self.name}: record {row + 1} of split {self._split_names[part]} cannot be "
                f"used ({error}); make the dataset again"
            ) from error

    def __repr__(self) -> str:
        return f"TfdsSource({self.name}, {self._split_names}, {len(self)} records)"


def _files_digest(folder: Path) -> str:
    stats = FileStats()
    for file in sorted(folder.iterdir()):
        stats.add(file)
    return stats.digest()


def _reader(folder: Path, features: Any) -> tuple[Callable[[Any, str], Record], Any]:
    """How an example becomes a record, and the decoders (images are left encoded)."""
    import tensorflow_datasets as tfds

    if set(features) == _OURS:
        return _read_ours, None
    images = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = {n: f.names for n, f in features.items() if isinstance(f, tfds.features.ClassLabel)}
    texts = [name for name, f in features.items() if isinstance(f, tfds.features.Text)]
    if not images and not texts:
        raise UserError(
            f"{folder} has no text and no image feature, only {', '.join(sorted(features))}; "
            "turn it into JSON Lines of records"
        )
    decoders = {name: tfds.decode.SkipDecoding() for name in images} or None
    return functools.partial(_read_features, images, texts, labels), decoders


def _read_ours(example: Mapping[str, Any], _: str) -> Record:
    blobs = [bytes(blob) for blob in example["images"]]
    return parse_record(json.loads(example["record"]), None, blobs)


def _read_features(
    images: list[str],
    texts: list[str],
    labels: Mapping[str, list[str]],
    example: Mapping[str, Any],
    record_id: str,
) -> Record:
    sources: dict[str, Any] = {
        name: bytes(example[name]).decode("utf-8", "replace") for name in texts
    }
    for i, name in enumerate(images):
        sources["image" if i == 0 else f"image_{name}"] = bytes(example[name])
    attributes = {
        name: names[int(example[name])] for name, names in labels.items() if example[name] >= 0
    }
    return parse_record({"id": record_id, "sources": sources, "attributes": attributes}, None)


def check_empty(out_dir: Path) -> None:
    """Refuses a folder that holds a dataset: TFDS would keep the old one and say nothing.

    Raises:
      UserError: there is a dataset in `out_dir`.
    """
    if (there := _folder(out_dir)) is not None:
        raise UserError(f"{there} holds a dataset; remove it or choose another output folder")
