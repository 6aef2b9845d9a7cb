"""Runs an entry point in a process of its own, as a person does."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
TINY = "tests/launch/tiny.py"
# The tiny settings cut answers, which a training tells; with this it has nothing to tell.
WHOLE_ANSWERS = "--config.data.answer_length=16"


def environment(cache=None):
    """One CPU device; compilers are told to be quick (tests/conftest.py); no programs of others."""
    kept = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    if cache:
        kept = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return {**os.environ, "JAX_PLATFORMS": "cpu", **kept}


def command(module, *arguments):
    """`python -m launch.<module>`, or of a module whose whole name is given."""
    name = module if "." in module else f"launch.{module}"
    return [sys.executable, "-m", name, *map(str, arguments)]


def run(module, *arguments, cache=None, timeout=300):
    """Runs `python -m launch.<module>` to its end; the result holds both outputs as text."""
    return subprocess.run(
        command(module, *arguments),
        cwd=ROOT,
        env=environment(cache),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
