from collections.abc import Mapping
import dataclasses
import shlex

import ml_collections
import pytest

from moemoe_jax.config_tree import (
    as_flags,
    choose,
    differences,
    differences_text,
    from_mapping,
    nearest,
    to_config_dict,
)
from moemoe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Wheel:
    name: str
    spokes: int = 32


@dataclasses.dataclass(frozen=True)
class Gears:
    teeth: tuple[int, ...] = (11, 28)
    ratio: float = 2.5
    chain: str | None = None

    def __post_init__(self):
        if self.ratio <= 0:
            raise ValueError(f"gears.ratio is {self.ratio}; give more than 0")
        if not self.teeth:
            raise ValueError("a cassette without a cog")


@dataclasses.dataclass(frozen=True)
class Bicycle:
    gears: Gears = Gears()
    wheels: tuple[Wheel, ...] = (Wheel("front"), Wheel("rear", 36))
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bell: bool = True


def test_there_and_back():
    bicycle = Bicycle(Gears((9,), 3.0, "steel"), (Wheel("only", 20),), {"colour": "red"}, False)
    for one in (bicycle, Bicycle()):
        assert from_mapping(Bicycle, to_config_dict(one).to_dict()) == one


def test_groups_unfold_by_name_and_can_be_overridden():
    config = to_config_dict(Bicycle())
    assert config.to_dict() == {
        "gears": {"teeth": (11, 28), "ratio": 2.5, "chain": None},
        "wheels": {"front": {"spokes": 32}, "rear": {"spokes": 36}},
        "labels": {},
        "bell": True,
    }
    config.wheels.rear.spokes = 40
    del config.wheels.front
    config.gears.chain = "brass"
    built = from_mapping(Bicycle, config.to_dict())
    assert built.wheels == (Wheel("rear", 40),) and built.gears.chain == "brass"


def test_what_is_derived_is_left_out_and_given_apart():
    config = to_config_dict(Bicycle(), frozenset({"gears.ratio", "bell"}))
    assert "bell" not in config and "ratio" not in config.gears
    assert from_mapping(Bicycle, config.to_dict(), bell=False) == Bicycle(bell=False)


def test_missing_keys_keep_their_defaults_and_json_types_fit():
    # JSON has lists for tuples, and writes 3.0 as 3.
    assert from_mapping(Gears, {"teeth": [9, 10], "ratio": 3}) == Gears((9, 10), 3.0)
    assert isinstance(from_mapping(Gears, {"ratio": 3}).ratio, float)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"gaers": {}}, r"^gaers does not exist; did you mean gears\?$"),
        ({"gears": {"teth": (1,)}}, r"^gears\.teth does not exist; did you mean teeth\?$"),
        ({"xyz": 1}, r"^xyz does not exist; the keys are gears, wheels, labels, bell$"),
        ({"wheels": ("rear",)}, r"^wheels is \('rear',\), but it is a group of settings$"),
        ({"wheels": {"rear": {"spoke": 1}}}, r"^wheels\.rear\.spoke does not exist.*spokes"),
        ({"gears": 3}, r"^gears is 3, but it is a group of settings$"),
        ({"wheels": {"rear": 3}}, r"^wheels\.rear is 3, but it is a group of settings$"),
        ({"gears": {"teeth": 3}}, r"^gears\.teeth is 3; give a tuple, such as"),
        ({"gears": {"teeth": "34"}}, r"^gears\.teeth is '34'; give a tuple"),
        ({"gears": {"teeth": (1, "x")}}, r"^a value in gears\.teeth is 'x'; give a whole number$"),
        ({"gears": {"ratio": "fast"}}, r"^gears\.ratio is 'fast'; give a number$"),
        ({"gears": {"ratio": True}}, r"^gears\.ratio is True; give a number$"),
        ({"gears": {"ratio": float("nan")}}, r"^gears\.ratio is nan; give a finite number$"),
        ({"gears": {"ratio": None}}, r"^gears\.ratio has no value$"),
        ({"gears": {"ratio": -1.0}}, r"^gears\.ratio is -1\.0; give more than 0$"),
        ({"gears": {"teeth": ()}}, r"^gears: a cassette without a cog$"),
        ({"bell": 1}, r"^bell is 1; give True or False$"),
        ({"labels": 1}, r"^labels is 1; give names with values$"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(mapping, message):
    with pytest.raises(UserError, match=message):
        from_mapping(Bicycle, mapping)


def test_a_flag_may_set_what_has_no_default_value():
    config = to_config_dict(Gears())
    assert isinstance(config, ml_collections.ConfigDict) and config.chain is None
    with config.unlocked(), pytest.raises(TypeError):
        config.chain = 3
    config.chain = "steel"
    assert from_mapping(Gears, config.to_dict()).chain == "steel"


def test_settings_as_flags_that_a_shell_gives_back():
    gears = {"teeth": ("$11", "2'8"), "chain": "a b", "ratio": None}
    lines = "\n".join(as_flags(ml_collections.ConfigDict({"bell": True, "gears": gears})))
    assert sorted(shlex.split(lines, comments=True)) == [
        "--config.bell=True",
        "--config.gears.chain=a b",
        f"--config.gears.teeth={gears['teeth']}",
    ]
    assert "# --config.gears.ratio is not set" in lines.splitlines()


def test_the_nearest_key_or_all_of_them():
    assert nearest("learning_rat", ["learning_rate", "name"]) == "; did you mean learning_rate?"
    assert nearest("zzz", ["b1", "b2"]) == "; the keys are b1, b2"
    assert "a config file may fill it" in nearest("color", [])


def test_choose_returns_what_is_known_and_names_the_rest():
    assert choose("configs/x.py", "a", ("a", "b")) == "a"
    with pytest.raises(UserError, match=r"^configs/x\.py does not know 'c'; use one of a, b$"):
        choose("configs/x.py", "c", ("a", "b"))


def test_what_differs_is_told_by_its_path():
    old = {"gears": {"teeth": [11], "ratio": 2.5}, "bell": True, "rider": "x" * 200}
    new = {"gears": {"teeth": [12], "ratio": 2.5}, "bell": True, "rider": "x" * 199}
    found = list(differences(old, new))
    assert found[0] == ("gears.teeth", [11], [12])
    told = "gears.teeth: [11] there, [12] now, rider: what is too long to show"
    assert differences_text(found) == told
    assert differences_text(found * 2).endswith(", gears.teeth: [11] there, [12] now and 1 more")
    assert not list(differences(old, old))
