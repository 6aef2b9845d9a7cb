"""The flag `--config=file.py[:argument]` and its overrides `--config.a.b=value`.

`--config=WORKDIR/config.json` takes the settings of a work directory.

The file is loaded here and handed to ml_collections as a ConfigDict, so that each mistake in the
file, its name, its argument or an override can be told in one line.
"""

from collections.abc import Sequence
import difflib
import importlib.util
from pathlib import Path
import re
import traceback

import ml_collections
from ml_collections import config_flags

from moemoe_jax.config_tree import nearest
from moemoe_jax.errors import UserError


def define_config(argv: Sequence[str], default: str) -> list[str]:
    """Loads the config file that `argv` names and defines `FLAGS.config` and its overrides.

    Args:
      argv: the command line.
      default: the config where `argv` names none.

    Returns:
      `argv` without `--config`.

    Raises:
      UserError: for a file, an argument or a key that does not exist, or a file that fails.
    """
    rest, spec = _split(argv, default)
    config = load_config(spec)
    for argument in rest:
        override = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if override:
            _check_key(config, override[1])
    config_flags.DEFINE_config_dict("config", config, "Settings.", sys_argv=rest)
    return rest


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Runs `get_config` of a config file, or reads a work directory's config.json.

    Args:
      spec: "file.py", "file.py:argument" or "folder/config.json".

    Raises:
      UserError: no such file, or it fails; names the line where it does.
    """
    name, colon, argument = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--config={spec}: there is no file {name}{_near(path)}")
    if path.suffix == ".json":
        from moemoe_jax.experiment import read_settings

        return read_settings(path)
    try:
        module = _module(path)
        config = module.get_config(argument) if colon else module.get_config()
    except ValueError as error:
        place = "" if name in str(error) else f"{name}: "
        raise UserError(f"{place}{error}") from None
    except Exception as error:
        raise UserError(
            f"{name}{_line(name, error)} fails ({type(error).__name__}: {error}); correct that file"
        ) from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{name}: get_config() must return a ConfigDict, not {config!r}")
    return config


def _line(file: str, error: Exception) -> str:
    """Says in which line of a file an exception came about, where it was in one."""
    if isinstance(error, SyntaxError):
        return f" line {error.lineno}"
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == file]
    return f" line {lines[-1]}" if lines else ""


def _module(path: Path):
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _split(argv: Sequence[str], spec: str) -> tuple[list[str], str]:
    """The command line without `--config=…` (or `--config …`), and what that says."""
    rest, waiting = [], False
    for argument in argv:
        given = re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL)
        if waiting:
            spec, waiting = argument, False
        elif given:
            spec, waiting = given[1] or spec, given[1] is None
        else:
            rest.append(argument)
    if waiting:
        raise UserError("--config has no value; write --config=file.py")
    return rest, spec


def _near(path: Path) -> str:
    """Names the config files that lie near a path that is none."""
    names = sorted(str(other) for other in path.parent.glob("[!_]*.py"))
    near = difflib.get_close_matches(str(path), names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(names)}" if names else f"; {path.parent} holds no config file"


def _check_key(config: ml_collections.ConfigDict, key: str) -> None:
    node, passed = config, "config"
    for part in key.split("."):
        if not isinstance(node, ml_collections.ConfigDict):
            raise UserError(f"--config.{key}: {passed} is a value and has no settings below it")
        if part not in node:
            from moemoe_jax.experiment import BY_NAME

            hint = nearest(part, list(node))
            if node and passed.removeprefix("config.") in BY_NAME:
                hint += " (a config file may add one, a flag cannot)"
            raise UserError(f"--config.{key}: there is no {part} in {passed}{hint}")
        node, passed = node[part], f"{passed}.{part}"
