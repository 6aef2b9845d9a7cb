"""A function of `benchmarks.rows` in a process of its own: JSON in, JSON out.

    python -m benchmarks.isolated REQUEST.json RESULT.json

Every row is measured in one, so that none pays for another's memory, threads or compiled programs;
and within a row, each side whose start or memory is measured.
"""

from collections.abc import Mapping
import dataclasses
import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.measure import Context
from moemoe_jax.errors import UserError

ROOT = Path(__file__).parents[1]
_LINES = 15  # of a failed process's stderr that are shown


def call(target: str, context: Context, **arguments: Any) -> Any:
    """Calls `benchmarks.rows.<file>.<function>(context, **arguments)` in a new process.

    Args:
      target: "file:function".
      context: how rows are measured.
      **arguments: what JSON can hold.

    Returns:
      what the function does, as JSON has it.

    Raises:
      UserError: when it does.
      RuntimeError: when the process fails otherwise; with the end of its stderr.
    """
    request = {
        "target": target,
        "context": dataclasses.asdict(context),
        "arguments": arguments,
    }
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(request))
        run_quietly([sys.executable, "-m", "benchmarks.isolated", str(asked), str(answered)])
        result = json.loads(answered.read_text())
    if "mistake" in result:
        raise UserError(result["mistake"])
    return result["value"]


def run_quietly(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Runs a command in the repository's root and returns what it printed.

    Raises:
      RuntimeError: for another exit status than 0; with the end of what it printed.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        shown = "\n".join(done.stdout.splitlines()[-_LINES:])
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {done.returncode}:\n{shown}")
    return done.stdout


def peak_bytes() -> int:
    """The most memory that this process had at a time.

    Linux tells it for the program itself; `getrusage` counts what the parent had at the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def require_torch() -> None:
    """Refuses to go on without the peers' library.

    Raises:
      UserError: with the command that installs it.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "the rows against PyTorch need torch, which is not installed: "
            "pip install -r requirements-test.txt"
        )


def main(request: str, result: str) -> None:
    """Answers the request in one file with a result in another; a user's mistake is a result."""
    asked = json.loads(Path(request).read_text())
    module, _, function = asked["target"].partition(":")
    try:
        run = getattr(importlib.import_module(f"benchmarks.rows.{module}"), function)
        value = run(Context(**asked["context"]), **asked["arguments"])
        answer = {"value": dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value}
    except UserError as error:
        answer = {"mistake": str(error)}
    Path(result).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
