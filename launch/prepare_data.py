"""Turns records of any format into one TFDS folder that is quick to read at random.

    python -m launch.prepare_data --input=products.jsonl --output=prepared

The output holds the records with their images inside, split into train, val and test, and is
itself a data source (`--config.data.source=prepared`). TensorFlow is not needed. What cannot be
used is listed in `<output>/rejects.jsonl` with file, line and reason.

    python -m launch.prepare_data --input=products.jsonl --output=prepared --image_size=256

also makes images smaller, once, so that no training decodes large photographs again. A longer side
of more than 256 pixels becomes 256, upright, as PNG: a training with `data.image_size` 256 then
sees the very pixels that it would make of the originals (its random crops are cut from those). With
a smaller one it sees them resized twice, which is hardly visible; a larger one is refused. What is
small already stays as it is. Images are decoded on all cores; what cannot be decoded is rejected
now, not in training.

Exit status: 0 all is written; 2 a mistake in the flags or the data, told in one line.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
import sys

from absl import flags

from launch import common

_INPUT = flags.DEFINE_string(
    "input",
    None,
    "Records: a file or folder (JSON Lines, Parquet, TFDS, WDC-PAVE, the Fashion Product Images "
    "folder), 'format:path', or 'catalogue'.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must hold no data.", required=True)
_SPLITS = flags.DEFINE_list(
    "splits", None, "Splits to write; default: train and those of val and test that are not empty."
)
_VAL = flags.DEFINE_float("val_fraction", 0.05, "Share cut for val where the input has no val.")
_TEST = flags.DEFINE_float("test_fraction", 0.2, "Share cut for test where the input has no test.")
_SEED = flags.DEFINE_integer("split_seed", 0, "Another seed cuts other splits.")
_MAX_REJECTS = flags.DEFINE_float(
    "max_reject_fraction", 0.01, "Share of bad records above which nothing is kept."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Pixels that the longer side of images is cut down to; 0 leaves them.", 0
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_image_pixels",
    64_000_000,
    "With --image_size: images with more pixels are rejected before they are decoded.",
    1,
    178_956_970,
)


def main(argv: Sequence[str]) -> int:
    """Runs the job; returns the exit status."""
    del argv
    from moemoe_jax.data.formats.tfds import check_empty
    from moemoe_jax.data.rejects import Rejects
    from moemoe_jax.data.sources import open_splits, own_splits
    from moemoe_jax.errors import UserError

    output = Path(_OUTPUT.value).expanduser()
    if output.is_file():
        raise UserError(f"--output={output} is a file; give a folder")
    check_empty(output)
    print(f"reading {_INPUT.value}", flush=True)
    rejects = Rejects(output / "rejects.jsonl", _MAX_REJECTS.value)
    fractions = {"val": _VAL.value, "test": _TEST.value}
    names = _SPLITS.value or [
        "train",
        *(n for n in fractions if fractions[n] > 0 or n in own_splits(_INPUT.value)),
    ]
    sources = open_splits(_INPUT.value, names, rejects, fractions=fractions, split_seed=_SEED.value)
    for name in names:
        if not len(sources[name]) and _SPLITS.value:
            raise UserError(f"split {name!r} has no record; leave it out or give it a larger share")
    sources = {name: source for name, source in sources.items() if len(source)}
    folder = _write(sources, output, rejects)
    _print_table({name: len(source) for name, source in sources.items()}, rejects)
    print(f"wrote {folder}; use it as --config.data.source={output}", flush=True)
    return 0


def _write(sources: Mapping, output: Path, rejects) -> Path:
    """Writes with a progress bar on a terminal, and a line per tenth in a log."""
    import tqdm

    from moemoe_jax.data.formats.tfds_writer import write_tfds

    total = sum(len(source) for source in sources.values())
    tenth = max(total // 10, 1)
    with tqdm.tqdm(
        total=total, unit="record", desc="writing", disable=not sys.stderr.isatty()
    ) as bar:
        done = 0

        def progress(split: str, count: int) -> None:
            nonlocal done
            done += count
            rejects.check()  # here, so that a job that fails leaves no dataset behind
            bar.update(count)
            if bar.disable and done % tenth == 0:
                print(f"writing {split}: {done} of {total} records", flush=True)

        return write_tfds(
            sources,
            output,
            rejects,
            progress,
            image_size=_IMAGE_SIZE.value,
            max_image_pixels=_MAX_PIXELS.value,
        )


def _print_table(counts: Mapping[str, int], rejects) -> None:
    rows = [*counts.items(), ("all", sum(counts.values()))]
    print(f"\n{'split':<12}{'records':>10}")
    for name, count in rows:
        print(f"{name:<12}{count:>10}")
    print(f"\n{'rejects':<40}{'count':>10}")
    for reason, count in [*rejects.reasons.most_common(), ("all", rejects.total)]:
        print(f"{reason[:39]:<40}{count:>10}")
    if rejects.total:
        print(f"listed in {rejects.path}")


if __name__ == "__main__":
    common.run(main)
