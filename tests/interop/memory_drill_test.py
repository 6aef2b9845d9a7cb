"""The host memory of an import and an export of published size: the parameters' and 1 GiB more."""

import re
import subprocess
import sys

import pytest

from moemoe_jax.data.tokenizer import Tokenizer
from tests.interop import folders, torch_models
from tests.interop.full_size_test import TEXTS, VISIONS
from tests.launch.cli import ROOT, command, environment

pytestmark = pytest.mark.drill
MEBIBYTE = 2**20
# In a small process of its own: a child counts what the process held that it was forked from.
MEASURE = (
    "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:]);"
    "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
)


def peak(*arguments):
    """Runs a command; returns what it said and the most that it held, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command(*arguments)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stdout.split()[-1]) / 1024


def test_a_t5_base_and_a_swinv2_tiny(tmp_path, capsys):
    text, vision, workdir = tmp_path / "text", tmp_path / "vision", tmp_path / "w"
    torch_models.text_model(*TEXTS["t5-base"]).save_pretrained(text)
    Tokenizer.train([folders.WORDS], 400).save(text)
    torch_models.save_vision(vision, **VISIONS["swinv2-tiny-window8-256"])
    given = [f"--text={text}", f"--vision={vision}", f"--workdir={workdir}"]
    said, importing = peak("import_hf", *given)
    _, exporting = peak("export_hf", f"--workdir={workdir}", f"--out={tmp_path / 'out'}")
    count = int(re.search(r"written: ([\d,]+) parameters", said)[1].replace(",", ""))
    size = 4 * count / MEBIBYTE
    with capsys.disabled():
        print(f"\n{'MiB':12}{'parameters':>12}{'peak':>8}{'limit':>8}")
        for name, most in (("import", importing), ("export", exporting)):
            print(f"{name:12}{size:12,.0f}{most:8,.0f}{size + 1024:8,.0f}")
    assert count > 3.5e8
    assert max(importing, exporting) <= size + 1024
