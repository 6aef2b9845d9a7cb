import json

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.workdir import OPERATIONAL, WorkDir, fingerprint, write_atomically

SETTINGS = {
    "train": {"seed": 0, "log_every": 20},
    "data": {"threads": 2, "source": "a", "sources": {"text": {"fields": ["title"]}}},
    "mesh": {"data": -1},
    "model": {"fusion": {"path": "shared"}, "text": {"remat": "none"}},
}


def text(**changes):
    """The settings as JSON, with `train__seed=1` for train.seed = 1."""
    settings = json.loads(json.dumps(SETTINGS))
    for path, value in changes.items():
        group, name = path.split("__")
        settings[group][name] = value
    return json.dumps(settings)


@pytest.fixture
def workdir(tmp_path):
    return WorkDir(tmp_path / "runs" / "dense")


def test_a_run_claims_its_directory_and_knows_it_again(workdir):
    assert not workdir.belongs_to(text())
    assert not workdir.path.exists()
    workdir.claim(text())
    assert workdir.belongs_to(text())
    assert workdir.read_config() == SETTINGS
    assert WorkDir.open(workdir.path) == workdir


def test_another_run_is_refused_with_what_differs(workdir):
    workdir.claim(text())
    with pytest.raises(UserError) as caught:
        workdir.belongs_to(text(train__seed=1, data__source="b"))
    message = str(caught.value)
    assert "data.source: 'a' there, 'b' now, train.seed: 0 there, 1 now" in message
    assert str(workdir.path) in message and "choose another --workdir" in message
    sources = {"text": {"fields": ["title"]}, "image": {}}
    changes = {"train__seed": 1, "train__new": 2, "data__source": "b", "data__sources": sources}
    with pytest.raises(UserError, match=r"data\.sources\.image: None there.* and 1 more\)"):
        workdir.belongs_to(text(**changes))


def test_how_a_run_goes_may_change(workdir):
    assert {"data.threads", "mesh.", "train.log_every"} <= set(OPERATIONAL)
    workdir.claim(text())
    # Whoever stops for too many rejects is told to raise the limit, and to run again.
    limit = {"data__max_reject_fraction": 0.1, "data__cache_text_mib": 0}
    # The first lines of a training say how it can be saved more often.
    saving = {"train__save_every": 5, "train__keep_last": 9}
    # A smaller device may have to recompute, and another mesh may need another dispatch.
    same_numbers = {"model__fusion": {"path": "literal"}, "model__text": {"remat": "full"}}
    changed = text(
        data__threads=8, mesh__data=4, train__log_every=1, **limit, **saving, **same_numbers
    )
    assert workdir.belongs_to(changed)
    workdir.claim(changed)
    assert workdir.read_config() == SETTINGS  # as the run began


def test_a_directory_that_is_none_names_its_neighbour(workdir):
    workdir.claim(text())
    missing = workdir.path.with_name("dens")
    with pytest.raises(UserError, match=rf"{missing} is no work directory.*mean {workdir.path}\?"):
        WorkDir.open(missing)
    with pytest.raises(UserError, match="train one first"):
        WorkDir.open(workdir.path.with_name("quite different"))
    with pytest.raises(UserError, match="train one first"):
        WorkDir.open(workdir.path / "far" / "away")


def test_a_damaged_config_is_named(workdir):
    workdir.claim(text())
    workdir.config.write_text(text()[:20])
    for read in (workdir.read_config, lambda: workdir.belongs_to(text())):
        with pytest.raises(UserError, match=rf"{workdir.config} is damaged.*restore it"):
            read()


def test_a_config_that_links_out_of_the_directory_is_not_followed(workdir):
    workdir.claim(text())
    workdir.config.rename(workdir.path.parent / "elsewhere.json")
    workdir.config.symlink_to(workdir.path.parent / "elsewhere.json")
    with pytest.raises(UserError, match=rf"{workdir.config} is a link that leads out"):
        workdir.read_config()


def test_attributes_come_back_in_the_order_of_the_data(workdir):
    workdir.write_attributes({"size": {"L": 2}, "color": {"red": 1, "": 3}})
    assert workdir.attributes() == ["size", "color"]
    (workdir.path / "attributes.json").write_text("{")
    with pytest.raises(UserError, match=r"attributes\.json is damaged: "):
        workdir.attributes()


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_the_fingerprint_is_that_of_the_settings_that_matter():
    base = {"train": {"steps": 3, "log_every": 1}, "mesh": {"data": 8}, "answer": {"beam": 2}}
    same = {"mesh": {"data": 1}, "train": {"log_every": 9, "steps": 3.0}, "answer": {"beam": 1}}
    other = {"mesh": {"data": 8}, "train": {"log_every": 1, "steps": 4}, "answer": {"beam": 2}}
    hashes = [fingerprint(json.dumps(config)) for config in (base, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
