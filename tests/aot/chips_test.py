"""Profiles of chips, and names of slices."""

import pytest

from moemoe_jax.aot.chips import CHIPS, H100, chip_of
from moemoe_jax.errors import UserError


def test_the_profiles_are_the_published_ones():
    found = {
        name: (chip.hbm_bytes / 2**30, chip.flops / 1e12, chip.hbm_bandwidth / 1e9)
        for name, chip in CHIPS.items()
    }
    assert found == {"v5e": (16, 197, 819), "v5p": (95, 459, 2765), "v6e": (32, 918, 1600)}
    # Twice a direction, two axes (three in a v5p): 400, 1200 and 800 GB/s in all.
    assert [2 * chip.ici_bandwidth / 1e9 for chip in CHIPS.values()] == [200, 400, 400]
    assert (H100.hbm_bytes / 2**30, H100.flops / 1e12, H100.hbm_bandwidth / 1e9) == (80, 989, 3350)
    assert H100.ici_bandwidth == 450e9


@pytest.mark.parametrize("name", ["v5e", "H100:2x2", "v7x:2x2", "v5e:4y4", "v5e:", "4x4"])
def test_another_name_is_told_in_a_line(name):
    with pytest.raises(UserError, match=r"write chip:shape, such as v5e:4x4") as caught:
        chip_of(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
