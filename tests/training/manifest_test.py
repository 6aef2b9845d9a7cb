from etils import epath
import numpy as np
import pytest

from moemoe_jax.training import manifest
from moemoe_jax.training.manifest import Manifest


@pytest.fixture
def sealed(tmp_path):
    """A folder of two files, sealed."""
    folder = epath.Path(tmp_path)
    (folder / "state").mkdir()
    (folder / "state" / "a").write_bytes(b"abc")
    (folder / "b").write_bytes(b"12345")
    leaves = manifest.describe({"w": np.zeros((2, 3), "float32")}, {"w": "0" * 16})
    manifest.seal(folder, Manifest.of(7, "hash", {"next": 3, "text": "é"}, leaves))
    return folder


def test_it_says_what_the_checkpoint_holds(sealed):
    found = manifest.read(sealed, 7)
    assert (found.step, found.config, found.meta) == (7, "hash", {"next": 3, "text": "é"})
    assert found.leaves == {"w": manifest.Leaf((2, 3), "float32", "0" * 16)}
    # echo -n abc | sha256sum
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found.files["state/a"] == (3, digest)
    assert {name: size for name, (size, _) in found.files.items()} == {"b": 5, "state/a": 3}
    assert {"python", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "moemoe_jax"} <= set(
        found.versions
    )
    assert manifest.find_damage(sealed, found) == ""


def test_every_bit_of_it_counts(sealed):
    text = (sealed / manifest.NAME).read_bytes()
    for bit in range(len(text) * 8):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"manifest\.json (is not what was|cannot be read)"):
            Manifest.from_json(bytes(flipped))
    for other in (text[:-1], text + b"\n", b"", b"[]", b"{}", b"null"):
        with pytest.raises(ValueError, match=r"manifest\.json"):
            Manifest.from_json(other)


def test_a_folder_without_or_with_another_step_s_is_named(sealed):
    with pytest.raises(ValueError, match="that of step 7"):
        manifest.read(sealed, 8)
    (sealed / manifest.NAME).unlink()
    with pytest.raises(ValueError, match=r"incomplete: manifest\.json is missing"):
        manifest.read(sealed, 7)


def test_each_file_that_differs_is_named(sealed):
    found = manifest.read(sealed, 7)
    (sealed / "b").write_bytes(b"12346")
    assert manifest.find_damage(sealed, found) == "b is not what was saved"
    (sealed / "b").write_bytes(b"1234")
    assert manifest.find_damage(sealed, found) == "b has 4 bytes, not 5"
    (sealed / "b").unlink()
    (sealed / "state" / "c").write_bytes(b"")
    assert manifest.find_damage(sealed, found) == "b is missing; state/c is unexpected"
