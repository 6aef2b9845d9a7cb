import errno

from etils import epath
import pytest

from moemoe_jax.training import disk


def test_a_disk_without_room_is_named_with_what_is_needed(tmp_path):
    disk.require_room(epath.Path(tmp_path), 1)
    disk.require_room(epath.Path("gs://somewhere/checkpoints"), 10**30)
    text = r"No space left on device \(1e\+21 GB needed, .* GB free\)"
    with pytest.raises(OSError, match=text) as no:
        disk.require_room(epath.Path(tmp_path), 10**30)
    assert (no.value.errno, no.value.filename) == (errno.ENOSPC, str(tmp_path))
