"""A work directory's config.json as a config."""

import pytest

from launch.config_flag import _check_key, load_config
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import to_json
from tests.launch import tiny


def test_the_settings_of_a_work_directory_are_a_config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(to_json(tiny.get_config()))
    assert to_json(load_config(str(path))) == path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is damaged: .*restore it from a copy"),
        ('{"train": {"seed": 0, "seed": 1}}', "config.json is damaged: 'seed' stands there twice"),
        ("[" * 100_000, "config.json is damaged: nested too deep"),
        ("[]", "config.json is damaged: not an object"),
        ('{"trian": {}}', "config.json: trian does not exist; did you mean train"),
        (
            # What a former version of the code had.
            '{"data": {"augment": {"source_dropout": 0.1}}}',
            r"config.json: data.augment.source_dropout does not exist; did you mean word_dropout\? "
            r"\(change it there, or use the version",
        ),
    ],
)
def test_a_damaged_one_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "optimizer.rate_scale.decoder",
            r"there is no decoder in config\.optimizer\.rate_scale; the keys are gate "
            r"\(a config file may add one, a flag cannot\)$",
        ),
        ("data.question_templates.size", "that group is empty: a config file may fill it"),
        ("optimizer.rat", r"there is no rat in config\.optimizer; did you mean rate_scale\?$"),
        ("train.seed.x", r"config\.train\.seed is a value"),
    ],
)
def test_a_key_that_there_is_not_is_told_with_what_can_be_done(key, message):
    with pytest.raises(UserError, match=message):
        _check_key(tiny.get_config(), key)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere.json").write_text(to_json(tiny.get_config()))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"model/config\.json is a link that leads out") as caught:
        load_config(str(folder / "config.json"))
    assert "\n" not in str(caught.value)


def test_a_file_of_any_size_is_not_read_whole(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a sparse file: it takes no space
    with pytest.raises(UserError, match=r"config\.json has more than 67108864 bytes"):
        load_config(str(path))
