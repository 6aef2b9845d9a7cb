"""A work directory's config.json as a config."""

import pytest

from launch.config_flag import load_config
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
        ("{", "config.json is damaged .*restore it from a copy"),
        ("[]", "config.json is damaged .not an object"),
        ('{"trian": {}}', "config.json: trian does not exist; did you mean train"),
    ],
)
def test_a_damaged_one_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path))
