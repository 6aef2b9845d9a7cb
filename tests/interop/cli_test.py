"""The two commands, and that a work directory of an import is one like any other."""

import json
import shutil

import chex
from flax import nnx
import jax
import pytest

from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import from_config_dict, read_settings
from moemoe_jax.inference.loading import load
from moemoe_jax.interop.exporting import export
from moemoe_jax.interop.importing import import_parts
from moemoe_jax.training.setup import first_state, plan
from moemoe_jax.workdir import WorkDir
from tests.interop import folders
from tests.launch.cli import TINY, run
from tests.launch.cli_test import refused
from tests.training.full_disk import files_of_at_most


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """Folders of a Flan-T5 and a SwinV2."""
    place = tmp_path_factory.mktemp("hub")
    folders.save_text("flan", place / "text")
    folders.save_vision(place / "vision")
    return place


@pytest.fixture(scope="module")
def imported(downloaded):
    """A work directory that the command made, and what it said."""
    workdir = downloaded / "w"
    done = import_hf(downloaded, workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def import_hf(place, workdir, *arguments):
    given = [f"--text={place / 'text'}", f"--vision={place / 'vision'}", f"--config={TINY}"]
    return run("import_hf", *given, f"--workdir={workdir}", *arguments)


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_says_what_went_where(imported):
    workdir, said = imported
    rows = [line.split() for line in said.splitlines()]
    assert ["tensor", "parameter", "how", "count"] in rows
    assert ["lm_head.weight", "lm_head/kernel", "copied", "1"] in rows
    source = "encoder.block.{i}.layer.0.SelfAttention.q.weight"
    target = "question_encoder/stack/{i}/self_attention/query/kernel"
    assert [source, target, "copied", "2"] in rows
    assert ["-", "image_projection/kernel", "new", "1"] in rows
    assert "setting from the files: data.image_mean: (0.5, 0.4, 0.3)" in said
    assert (workdir / "imported.txt").is_file()


@pytest.fixture(scope="module")
def trained(imported, tmp_path_factory):
    """The import before and after a training in place, and what the training said."""
    before, _ = imported
    workdir = tmp_path_factory.mktemp("trained") / "w"
    shutil.copytree(before, workdir)
    return workdir, succeeded(
        run("train", f"--config={before}/config.json", f"--workdir={workdir}")
    )


def test_an_imported_model_answers(imported, tmp_path):
    workdir, _ = imported
    ask = ["--input=catalogue:products=2,image_size=16", "--attributes=color"]
    answers = tmp_path / "answers.jsonl"
    succeeded(run("predict", f"--workdir={workdir}", *ask, f"--output={answers}"))
    assert [json.loads(line)["attribute"] for line in answers.read_text().splitlines()] == [
        "color"
    ] * 2


def test_it_trains_in_place(trained):
    workdir, said = trained
    assert f"init: step 0 of {workdir}" in said
    assert "0 new" in said
    assert "val at step 2: accuracy" in said  # evaluated by the trained model
    assert (
        sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())[-1] == "2"
    )


def test_it_starts_a_training_elsewhere_with_other_settings(imported, monkeypatch):
    workdir, _ = imported
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)
    mapping = read_settings(workdir / "config.json")
    mapping.init.work_dir, mapping.optimizer.learning_rate = str(workdir), 1e-4
    config = from_config_dict(mapping, Tokenizer.load(workdir / "tokenizer").vocab_size)
    said = []
    state, _ = first_state(config, plan(config, 1), said.append)
    assert f"init: step 0 of {workdir}" in said[0] and "0 new" in said[0]
    expected = load(WorkDir.open(workdir)).params[0]
    chex.assert_trees_all_equal(nnx.to_pure_dict(state.params), nnx.to_pure_dict(expected))


def test_a_trained_model_is_exported_and_imported_by_the_commands(trained, imported, tmp_path):
    workdir, _ = trained
    out, back = tmp_path / "out", tmp_path / "back"
    said = succeeded(run("export_hf", f"--workdir={workdir}", f"--out={out}"))
    assert "model: step 2" in said
    assert {p.name for p in out.iterdir()} == {"text", "question_encoder", "vision", "moemoe"}
    succeeded(run("import_hf", f"--model={out / 'moemoe'}", f"--workdir={back}"))
    assert (back / "config.json").read_text() == (imported[0] / "config.json").read_text()


def test_a_mistake_in_the_flags_is_told_in_one_line(tmp_path):
    flags = ["--model=x", "--text=y", f"--config={TINY}", f"--workdir={tmp_path / 'w'}"]
    refused(run("import_hf", *flags), "import_hf: give either --text=DIR")
    assert not list(tmp_path.iterdir())


def without_images(config):
    del config.data.sources.image


def longer(config):
    config.data.text_length = 24


def another_tokenizer(config):
    config.data.tokenizer = "no/where"


def nine_layers(config):
    config.model.moe_layers.decoder = "9"


def no_tokenizer(config):
    config.data.tokenizer = "configs"


def three_devices(config):
    config.mesh.data = 3


@pytest.mark.parametrize(
    ("change", "vision", "message"),
    [
        (nine_layers, "vision", "layers 0 to 1"),
        (None, "", r"data\.sources\.image is an image, but there is no --vision=DIR"),
        (without_images, "vision", "no source in data.sources is an image"),
        (None, "text", r"text/config\.json has model_type 't5'; implemented: swinv2"),
        (longer, "vision", "data.text_length 24 is not a multiple of the 16 image tokens"),
        (another_tokenizer, "vision", "no/where does not exist"),
        (no_tokenizer, "vision", r"configs holds no tokenizer \(tokenizer.json or spiece.model\)"),
        (three_devices, "vision", "mesh data=3"),
    ],
)
def test_settings_that_do_not_fit_leave_no_work_directory(
    downloaded, tmp_path, change, vision, message
):
    config = folders.config()
    if change:
        change(config)
    where = str(downloaded / vision) if vision else ""
    with pytest.raises(UserError, match=message) as error:
        import_parts(config, str(downloaded / "text"), where, str(tmp_path / "w"), lambda _: None)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_leaves_no_work_directory(downloaded, tmp_path):
    # The arrays are written in the background: the largest has 480 x 16 entries, 30 KiB.
    with files_of_at_most(2**14), pytest.raises(UserError) as error:
        import_parts(
            folders.config(), str(downloaded / "text"), str(downloaded / "vision"),
            str(tmp_path / "w"), lambda _: None,
        )  # fmt: skip
    assert str(error.value) == f"{tmp_path / 'w'} cannot be written: File too large"
    assert error.value.__cause__.filename.endswith("/checkpoints")
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_not_overwritten(downloaded, imported, tmp_path):
    workdir, _ = imported
    before = (workdir / "config.json").read_text()
    parts = (str(downloaded / "text"), str(downloaded / "vision"))
    with pytest.raises(UserError, match=f"{workdir} exists already"):
        import_parts(folders.config(), *parts, str(workdir), lambda _: None)
    assert (workdir / "config.json").read_text() == before
    with pytest.raises(UserError, match=f"{tmp_path} exists already"):
        export(str(workdir), str(tmp_path), say=lambda _: None)


def test_a_model_that_is_no_export_is_named(downloaded, tmp_path):
    done = run("import_hf", f"--model={downloaded / 'vision'}", f"--workdir={tmp_path / 'w'}")
    refused(done, downloaded / "vision")
    assert not list(tmp_path.iterdir())
