import io
import json
import os
from pathlib import Path
import pickle
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from moemoe_jax.data.formats.tfds_writer import write_tfds
from moemoe_jax.data.records import Record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import open_source, own_splits
from moemoe_jax.errors import UserError
from tests.data.products import ListSource


def png(value):
    out = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(out, "png")
    return out.getvalue()


def test_round_trip(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    train = [
        Record(
            "a",
            {"title": "Bläu", "bullets": ("x", "y"), "image": tmp_path / "a.png"},
            attributes={"color": "blue", "sleeve": None},
            alternatives={"color": ("blue", "navy")},
        ),
        Record("b", {"image": (png(2), png(3)), "image_back": png(4)}),
        Record("c", {"title": "no picture", "image": tmp_path / "gone.png"}),
    ]
    test = [Record("d", {"title": "only text"})]
    rejects, calls = Rejects(), []
    out = tmp_path / "out"
    sources = {"train": ListSource(train), "test": ListSource(test)}
    write_tfds(sources, out, rejects, lambda split, count: calls.append((split, count)))
    assert calls == [("train", 1)] * 3 + [("test", 1)]
    assert rejects.reasons == {"unreadable image": 1}

    assert set(own_splits(str(out))) == {"train", "test"}
    source = open_source(str(out), "train", fractions={})
    assert len(source) == 3
    assert source[0].sources == {**train[0].sources, "image": png(1)}
    assert (source[0].attributes, source[0].alternatives) == (
        train[0].attributes,
        train[0].alternatives,
    )
    assert source[1] == train[1]
    assert source[-1] == Record("c", {"title": "no picture"})
    assert pickle.loads(pickle.dumps(source))[1] == train[1]
    (file,) = out.rglob("*-train.array_record*")
    os.utime(file, ns=(0, 0))
    assert open_source(str(out), "train", fractions={}).files_digest != source.files_digest
    everything = open_source(str(out))
    assert sorted(everything[i].id for i in range(4)) == ["a", "b", "c", "d"]
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match="holds a dataset"):
        write_tfds(sources, out, rejects)


def test_any_dataset_by_the_kinds_of_its_features(tmp_path):
    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(4, 5, 3)),
                "caption": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["zero", "one"]),
                "weight": np.float32,
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for i in range(2):
                yield i, {"image": png(i), "caption": f"c{i}", "label": i, "weight": 0.5}

    Digits(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = open_source(f"tfds:{tmp_path / 'digits' / '1.0.0'}", "val")
    assert len(source) == 2
    assert source[1] == Record(
        "validation-1", {"caption": "c1", "image": png(1)}, attributes={"label": "one"}
    )


def test_a_broken_folder(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="no complete TFDS dataset"):
        open_source(str(tmp_path))


def prepare(*flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.prepare_data", *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_prepare_data(tmp_path):
    lines = [json.dumps({"id": f"p{i}", "sources": {"title": f"t{i}"}}) for i in range(60)]
    lines[7] = lines[7][:-5]
    lines[8] = json.dumps({"id": "p8", "sources": {"image": "a.png"}})
    (tmp_path / "a.png").write_bytes(png(9))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    flags = (f"--input={tmp_path / 'a.jsonl'}", f"--output={out}")
    done = prepare(*flags, "--val_fraction=0.2", "--max_reject_fraction=0.05", "--image_size=3")
    assert done.returncode == 0, done.stderr
    assert "not JSON" in done.stdout and "train" in done.stdout
    source = open_source(str(out))
    assert len(source) == 59 and source.image_size == 3
    (image,) = [r.image("image") for r in map(source.__getitem__, range(59)) if r.id == "p8"]
    assert Image.open(io.BytesIO(image)).size == (3, 2)  # of 5 x 4
    assert json.loads((out / "rejects.jsonl").read_text())["line"] == 8
    assert "tensorflow" not in done.stderr.lower()
    again = prepare(*flags)
    assert again.returncode == 2
    assert "holds a dataset" in again.stderr and len(again.stderr.splitlines()) == 1
    assert "Traceback" not in again.stderr


def test_prepare_data_keeps_nothing_where_too_much_is_bad(tmp_path):
    lines = [json.dumps({"id": i, "sources": {"image": f"gone{i}.jpg"}}) for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    done = prepare(f"--input={tmp_path / 'a.jsonl'}", f"--output={out}", "--splits=train")
    assert done.returncode == 2
    assert "unreadable image" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(out.rglob("dataset_info.json"))
    assert (out / "rejects.jsonl").exists()
