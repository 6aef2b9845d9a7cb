"""Nothing is ever unpickled: pickles whose loading would leave a file behind, at every entry."""

import io
from pathlib import Path
import pickle
import re
import shlex
import sys
import types
import zipfile

import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.interop.weights import find_file, open_weights, read_json
from tests.interop.weight_folders import CONFIG, PLACES, SHARD_ONE, folder, sharded, single


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def in_zip(content):
    """The layout that torch.save writes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return out.getvalue()


def in_numpy(canary):
    out = io.BytesIO()
    np.save(out, np.array([canary], dtype=object), allow_pickle=True)
    return out.getvalue()


def framed(content):
    """A pickle that begins like a safetensors file: eight bytes of length, then a brace."""
    return len(content).to_bytes(8, "little") + b"{" + content


FORMS = {
    **{f"protocol {p}": (lambda canary, p=p: pickle.dumps(canary, p)) for p in range(6)},
    "zip": lambda canary: in_zip(pickle.dumps(canary, 2)),
    "framed": lambda canary: framed(pickle.dumps(canary)),
    "numpy object array": in_numpy,
}


def test_the_canary_lives(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "sang")))
    assert (tmp_path / "sang").exists()


NAMES = (
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "model.pt",
    "model.pth",
    "model.pkl",
    "model.pickle",
    "model.ckpt",
    "MODEL.PT",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_pickles_is_refused_with_the_reason_and_the_command(tmp_path, name):
    content = pickle.dumps(Canary(tmp_path / "sang"))
    path = folder(tmp_path / "model", {name: content})
    for given in (path, path / name):  # the folder, and the file itself
        with pytest.raises(UserError) as caught:
            open_weights(given)
        message = str(caught.value)
        assert message.startswith(f"{path / name} is a pickle, which is never loaded as loading it")
        assert "could run any code" in message and len(message.splitlines()) == 1
        assert len(command(message)) == 3
    assert not (tmp_path / "sang").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["model.safetensors", "config.json", "shard", "index"])
def test_a_pickle_under_another_name_is_not_loaded(tmp_path, form, place):
    content = FORMS[form](Canary(tmp_path / "sang"))
    if place in ("shard", "index"):
        path = sharded(tmp_path / "model", two=content if place == "shard" else SHARD_ONE)
        if place == "index":
            (path / "model.safetensors.index.json").write_bytes(content)
    else:
        path = single(tmp_path / "model", **{place: content})
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert len(str(caught.value).splitlines()) == 1
    if place == "config.json":
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            read_json(path, "config.json")
    assert not (tmp_path / "sang").exists()


@pytest.mark.parametrize("form", ["protocol 2", "protocol 5", "zip"])
def test_what_lies_under_the_name_is_said(tmp_path, form):
    content = FORMS[form](Canary(tmp_path / "sang"))
    kind = "a zip of pickles" if form == "zip" else "a pickle"
    with pytest.raises(UserError, match=f"is not a safetensors file but {kind}, never loaded"):
        open_weights(single(tmp_path / "model", content))


def test_an_index_that_names_a_pickle_is_refused(tmp_path):
    places = {**PLACES, "b": "pytorch_model.bin"}
    path = sharded(tmp_path / "model", places)
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "sang")))
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        open_weights(path)
    assert not (tmp_path / "sang").exists()


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "adapter.safetensors"])
def test_other_formats_are_named(tmp_path, name):
    path = folder(tmp_path / "model", {name: b"x"})
    with pytest.raises(UserError, match=rf"holds no model\.safetensors .*{name} is not read"):
        open_weights(path)


def test_paths_that_are_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = single(tmp_path / "model") / "model.safetensors"
    with pytest.raises(UserError, match="is a file: give the folder that holds it"):
        open_weights(file)
    with pytest.raises(UserError, match="gone is no folder of weights: check the path"):
        open_weights(tmp_path / "gone")
    with pytest.raises(UserError, match="`hf download google/t5 --local-dir t5`"):
        open_weights("google/t5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no model\.safetensors and no"):
        open_weights("empty")


def test_what_a_folder_says_does_not_slip_into_the_command(tmp_path, monkeypatch):
    evil = 't5"; import os; os.system("touch sang")  #$(touch sang)`touch sang`\'; touch sang'
    config = {**CONFIG, "architectures": [evil]}
    path = folder(tmp_path / evil, {"config.json": config, "pytorch_model.bin": b"x"})
    with pytest.raises(UserError) as caught:
        open_weights(path)
    _, _, code = command(str(caught.value))
    # Run with a transformers that does nothing, the code copies the folder and no more.
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert run(code, monkeypatch) == [("AutoModel", str(path), f"{evil}-safetensors")]
    assert not list(tmp_path.rglob("sang"))


def run(code, monkeypatch):
    """Runs a command's code with a stand-in for transformers; returns what it was asked."""
    calls = []

    class Model:
        def __init__(self, name, source):
            self.name, self.source = name, source

        def save_pretrained(self, target):
            calls.append((self.name, self.source, target))

    class Fake(types.ModuleType):
        def __getattr__(self, name):
            def from_pretrained(source, weights_only):
                assert weights_only is True
                return Model(name, source)

            return types.SimpleNamespace(from_pretrained=from_pretrained)

    monkeypatch.setitem(sys.modules, "transformers", Fake("transformers"))
    exec(code, {})
    return calls


def command(message):
    """The words of the command in a message, as a shell splits it."""
    return shlex.split(re.search(r"`(python -c .*)`, with torch installed", message)[1])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_the_command_makes_a_folder_that_is_read(tmp_path, monkeypatch, name):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2,
        tie_word_embeddings=False, architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(20, 8))  # untied, as Flan-T5's
    path = folder(tmp_path / "it's t5", {"config.json": config.to_dict(), "spiece.model": b"x"})
    torch.save(model.state_dict(), path / name)
    with pytest.raises(UserError) as caught:
        open_weights(path)
    _, _, code = command(str(caught.value))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    exec(code, {})
    made = tmp_path / "cwd" / "it's t5-safetensors" if name == "pytorch_model.bin" else path
    weights = open_weights(made)
    assert find_file(made, "spiece.model") and weights.config["d_model"] == 8
    state = model.state_dict()
    aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert set(state) - aliases <= set(weights.names()) <= set(state)
    for tensor in weights.names():
        np.testing.assert_array_equal(weights.read(tensor), state[tensor].numpy())
