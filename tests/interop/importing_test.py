import pytest

from moemoe_jax.data.tokenizer import TOKENIZER_FILES, Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.interop.importing import load_tokenizer


@pytest.fixture
def folder(tmp_path):
    Tokenizer.train(["a red shirt"] * 3, 400).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_tokenizer_comes_along(folder):
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer.encode("a red shirt", 20)[0]) == "a red shirt"


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_link_out_of_the_folder_is_not_followed(folder, name):
    outside = folder.parent / "elsewhere.json"
    outside.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(UserError, match=name) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_file_of_any_size_is_not_read_whole(folder, name):
    with (folder / name).open("wb") as file:
        file.truncate(2**40)  # a sparse file: it takes no space
    with pytest.raises(UserError, match=f"model/{name} has more than 67108864 bytes"):
        load_tokenizer(str(folder))
