"""The two commands, and that a work directory of an import is one like any other."""

import json

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.interop import importing
from moemoe_jax.interop.importing import import_parts
from tests.interop import folders
from tests.launch.cli import TINY, run
from tests.launch.cli_test import refused


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


def test_an_imported_model_answers_evaluates_and_trains_in_place_or_elsewhere(imported, tmp_path):
    workdir, _ = imported
    ask = ["--input=catalogue:products=2,image_size=16", "--attributes=color"]
    answers = tmp_path / "answers.jsonl"
    succeeded(run("predict", f"--workdir={workdir}", *ask, f"--output={answers}"))
    assert [json.loads(line)["attribute"] for line in answers.read_text().splitlines()] == [
        "color"
    ] * 2
    assert "accuracy" in succeeded(run("evaluate", f"--workdir={workdir}"))

    settings = f"--config={workdir / 'config.json'}"
    elsewhere = tmp_path / "elsewhere"
    start = [settings, f"--config.init.work_dir={workdir}", f"--workdir={elsewhere}"]
    said = succeeded(run("train", *start, "--config.optimizer.learning_rate=1e-4"))
    assert f"init: step 0 of {workdir}" in said
    assert "0 new" in said
    said = succeeded(run("train", settings, f"--workdir={workdir}"))
    assert f"init: step 0 of {workdir}" in said

    out, back = tmp_path / "out", tmp_path / "back"
    said = succeeded(run("export_hf", f"--workdir={workdir}", f"--out={out}"))
    assert "model: step 2" in said
    assert {p.name for p in out.iterdir()} == {"text", "question_encoder", "vision", "moemoe"}
    succeeded(run("import_hf", f"--model={out / 'moemoe'}", f"--workdir={back}"))
    assert (back / "config.json").read_text() == (workdir / "config.json").read_text()


def test_a_mixture_is_made_at_import(downloaded, tmp_path):
    flags = ["--config.model.moe_layers.decoder=odd", "--config.init.expert_noise=0.01"]
    said = succeeded(import_hf(downloaded, tmp_path / "w", *flags))
    assert "to each expert" in said
    assert "decoder/stack/*/feed_forward/router/kernel" in said


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model=x", "--config=" + TINY], ["give either --text=DIR"]),
        (["--text=google/flan-t5-base"], ["google/flan-t5-base is no folder", "hf download"]),
        (["--config.model.moe_layers.decoder=9"], ["layers 0 to 1"]),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_no_work_directory(
    downloaded, tmp_path, flags, parts
):
    done = import_hf(downloaded, tmp_path / "w", *flags)
    refused(done, "import_hf: ", *parts)
    assert not list(tmp_path.iterdir())


def without_images(config):
    del config.data.sources.image


def longer(config):
    config.data.text_length = 24


def another_tokenizer(config):
    config.data.tokenizer = "no/where"


def three_devices(config):
    config.mesh.data = 3


@pytest.mark.parametrize(
    ("change", "vision", "message"),
    [
        (None, "", r"data\.sources\.image is an image, but there is no --vision=DIR"),
        (without_images, "vision", "no source in data.sources is an image"),
        (None, "text", r"text/config\.json has model_type 't5'; implemented: swinv2"),
        (longer, "vision", "data.text_length 24 is not a multiple of the 16 image tokens"),
        (another_tokenizer, "vision", "no/where does not exist"),
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


def test_a_failure_while_writing_leaves_no_work_directory(downloaded, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(importing.Checkpoints, "save", fails)
    with pytest.raises(UserError, match="w cannot be written: No space left on device"):
        import_parts(
            folders.config(), str(downloaded / "text"), str(downloaded / "vision"),
            str(tmp_path / "w"), lambda _: None,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_not_overwritten(downloaded, imported, tmp_path):
    workdir, _ = imported
    before = (workdir / "config.json").read_text()
    refused(import_hf(downloaded, workdir), workdir, "exists already")
    assert (workdir / "config.json").read_text() == before
    done = run("export_hf", f"--workdir={workdir}", f"--out={tmp_path}")
    refused(done, tmp_path, "exists already")
    vision = run("import_hf", f"--model={downloaded / 'vision'}", f"--workdir={tmp_path / 'w'}")
    refused(vision, downloaded / "vision")
    assert not list(tmp_path.iterdir())
