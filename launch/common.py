"""What the entry points share: a first line at once, and one line for a user's mistake.

Exit status: 0 the whole job is done; 2 a user's mistake (one line on stderr); 1 anything else.
"""

from collections.abc import Callable, Sequence
import sys
import warnings

from absl import app, flags

USER_ERROR = 2


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs `main(argv)` under absl; a `UserError` becomes one line and exit status 2."""
    name = sys.argv[0].rpartition("/")[2].removesuffix(".py")
    if not {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(sys.argv):
        print(f"{name}: starting with {' '.join(sys.argv[1:]) or 'default flags'}", flush=True)

    def guarded(argv: Sequence[str]) -> int:
        from moemoe_jax.errors import UserError

        _quiet()
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is no flag; flags are written --name=value")
            return main(argv) or 0
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            return USER_ERROR

    try:
        app.run(guarded)
    except (AttributeError, KeyError) as error:
        # What a ConfigDict says of an override whose key it does not have; it names the nearest.
        if "config" not in repr(error).lower() and "did you mean" not in str(error).lower():
            raise
        print(f"{name}: {_one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def define_config(default: str) -> None:
    """Defines `--config=file.py[:argument]`, whose settings `--config.a.b=value` overrides."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", default, "Settings: a file, then overrides.")


def define_workdir(help_text: str = "The work directory.") -> None:
    """Defines `--workdir`, which must be given."""
    flags.DEFINE_string("workdir", None, help_text)
    flags.mark_flag_as_required("workdir")


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())


def _quiet() -> None:
    """Keeps other libraries' notices out of a job's output; our own warnings stay."""
    import logging

    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("jax", "orbax", "grain"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(?!moemoe_jax)")
