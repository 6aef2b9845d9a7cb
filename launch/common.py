"""What the entry points share: a first line at once, and one line for a user's mistake.

Exit status:
    0    the whole job is done
    1    anything that is not listed here
    2    a user's mistake (one line on stderr)
    70   a training made no progress for `train.stall_abort_seconds`
    75   a training was asked to stop by SIGTERM, SIGINT or SIGUSR1, and has saved; the same command
         goes on
    130  a second SIGINT: a training left at once, what came after its last checkpoint is lost
    134  SIGABRT: of several processes the first is gone, for which JAX ends the others
Of several processes one that fails takes the others along: with status 1, or by SIGABRT.
"""

from collections.abc import Callable, Collection, Sequence
import dataclasses
import errno
import functools
import os
import sys
from typing import Any
import warnings

from absl import app, flags

from launch import parsing, process
from moemoe_jax.errors import STOPPED, USER_ERROR, Stopped, UserError

FAILED = 1
_HELP = {"--help", "-help", "-?", "--helpshort", "--helpfull", "--helpxml"}

# Which process this is, once it is one of several.
_several: list[str] = []

# The flags defined here belong to the entry point that asks for them: its --help shows them.
flags.disclaim_key_flags()


def run(
    main: Callable[[Sequence[str]], int | None], config: str = "", positional: bool = False
) -> None:
    """Runs `main(argv)` under absl; a user's mistake becomes one line and exit status 2.

    Args:
      main: what to run; may return an exit status.
      config: the default of a flag `--config=file.py[:argument]`, whose settings
        `--config.a.b=value` overrides; without a default there is no such flag.
      positional: whether `main` takes arguments that are no flags.
    """
    process.prepare()
    name = sys.argv[0].rpartition("/")[2].removesuffix(".py")
    argv = ["--help" if argument == "-h" else argument for argument in sys.argv]
    helping = bool(_HELP & set(argv))
    if helping and config:
        flags.DEFINE_string("config", config, "Settings: file.py or file.py:argument.")
    if not helping:
        print(f"{name}: starting with {' '.join(argv[1:]) or 'default flags'}", flush=True)

    def guarded(argv: Sequence[str]) -> int:
        _quiet()
        if len(argv) > 1 and not positional:
            raise UserError(f"{argv[1]!r} is no flag; flags are written --name=value")
        return main(argv) or 0

    parser = functools.partial(parsing.parse, config="" if helping else config)
    try:
        app.run(guarded, argv=argv, flags_parser=parser)
    except UserError as error:
        _fail(name, error)
    except Stopped:
        sys.exit(STOPPED)
    except OSError as error:
        if error.filename is None:
            _raise(name)
        room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "choose another path" + (", or make room there" if room else "")
        _fail(name, f"{error.filename}: {error.strerror}; {remedy}")
    except (Exception, KeyboardInterrupt):
        _raise(name)
    except SystemExit as leaving:
        # Absl's status is 1 for a help that was asked for.
        sys.exit(0 if helping else leaving.code)


def define_workdir(help_text: str = "The work directory.") -> None:
    """Defines `--workdir`, which must be given."""
    flags.DEFINE_string("workdir", None, help_text, required=True)


def define_reject_limit() -> None:
    """Defines the flag that stands above the run's own limit of bad records; see `limited`."""
    flags.DEFINE_float(
        "max_reject_fraction",
        None,
        "Share of bad records above which the job fails; by default the training's.",
    )


def limited(loaded):
    """The loaded model, its settings with the limit of `--max_reject_fraction` where it is given.

    Raises:
      UserError: the limit is no share.
    """
    limit = flags.FLAGS.max_reject_fraction
    if limit is None:
        return loaded
    data = dataclasses.replace(loaded.config.data, max_reject_fraction=limit)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))


def define_changes(
    group: str, kind: type, what: str, example: str, omit: Collection[str] = ()
) -> None:
    """Defines the flag that changes some of the run's own settings; see `changed`.

    Args:
      group: of the settings, and the flag's name.
      kind: the dataclass of the group, which holds the defaults.
      what: the settings are of.
      example: of a change.
      omit: settings that are derived and not the user's to set, or that the command does not read.
    """
    defaults = ", ".join(
        f"{field.name}={_written(field.default)}"
        for field in dataclasses.fields(kind)
        if field.name not in omit
    )
    flags.DEFINE_list(
        group,
        [],
        f"Settings of {what} to change, such as {example}; by default the run's, which are, "
        f"unless its config says otherwise: {defaults}",
    )


def changed(loaded, group: str, given: Sequence[str], omit: Collection[str] = ()):
    """The loaded model, with those of a group of its settings changed that are `given`.

    Args:
      loaded: the model.
      group: of the settings, such as "answer".
      given: "name=value" each, what the flag of that name holds; several numbers as "5:10".
      omit: settings that the command does not read.

    Raises:
      UserError: no such setting (naming the nearest), or one that is not the user's to set or that
        would change nothing, or a value that it cannot have.
    """
    from moemoe_jax.config_tree import from_mapping
    from moemoe_jax.experiment import DERIVED

    settings = getattr(loaded.config, group)
    values = dataclasses.asdict(settings)
    for setting in given:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UserError(f"--{group} has {setting!r}; write name=value, as --help shows them")
        if f"{group}.{name}" in DERIVED:
            raise UserError(f"--{group} has {setting!r}, which follows from the run's data")
        if name in omit:
            raise UserError(f"--{group} has {setting!r}, which this command does not read")
        values[name] = _read(text, values.get(name, ""), f"--{group} has {setting!r}")
    config = dataclasses.replace(
        loaded.config, **{group: from_mapping(type(settings), values, group)}
    )
    return dataclasses.replace(loaded, config=config)


def _written(value: Any) -> str:
    """A setting's value as `_read` takes it."""
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read(text: str, value: Any, where: str) -> Any:
    """What a flag says, as the type of the value that it replaces."""
    from moemoe_jax.config_tree import WORDS

    kind = type(value)
    try:
        return tuple(map(int, text.split(":"))) if kind is tuple else kind(text)
    except ValueError:
        wanted = f"{WORDS[int]}, or several such as 5:10" if kind is tuple else WORDS[kind]
        raise UserError(f"{where}; give {wanted}") from None


def define_processes() -> None:
    """Defines the flags with which several processes find each other; see `join_processes`."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where there are several.")
    flags.DEFINE_integer("processes", None, "How many there are; Slurm, GKE and others say it.")
    flags.DEFINE_integer("process", None, "Which one this is, from 0; likewise.")
    flags.DEFINE_integer(
        "peer_timeout", 100, "Seconds after which a silent process is dead, and the job ends.", 10
    )


def join_processes() -> None:
    """Meets the other processes, where flags or the cluster say that there are others.

    From then on only the first one prints, and one that fails ends at once: the usual end waits
    for the others, which may be waiting for it.

    Raises:
      UserError: for what `clusters.locate` and `processes.join` refuse.
    """
    from moemoe_jax.parallel import clusters

    args = flags.FLAGS
    place = clusters.locate(args.coordinator, args.processes, args.process)
    if place is None:
        return
    import jax

    from moemoe_jax.parallel import processes

    process.abort_without_stacks()
    processes.join(place, args.peer_timeout)
    _several.append(f"process {jax.process_index()} of {jax.process_count()}")
    processes.quieten_others()
    print(
        f"processes: {jax.process_count()} with {jax.device_count()} devices, "
        f"met through {place.cluster}",
        flush=True,
    )


def _fail(name: str, error: Exception | str, status: int = USER_ERROR) -> None:
    who = ": ".join([name, *_several])
    print(f"{who}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    _leave(status)


def _raise(name: str) -> None:
    """Lets the exception at hand go on, with a traceback; of several processes, ends this one."""
    if not _several:
        raise  # noqa: PLE0704  called where one is handled
    from moemoe_jax.parallel.processes import lost_a_peer

    error = sys.exception()
    if lost_a_peer(error):
        remedy = "the same command goes on from the last checkpoint"
        cause = str(error).strip().splitlines()[0][:160]
        _fail(name, f"another process is gone; {remedy} ({cause})", FAILED)
    sys.excepthook(type(error), error, error.__traceback__)
    _leave(FAILED)


def _leave(status: int) -> None:
    """Exits; one of several processes does so without the wait for the others to end as well."""
    if _several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _quiet() -> None:
    """Keeps other libraries' notices out of a job's output; our own warnings stay."""
    import logging

    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.WARNING)
    # A warning is for who runs the job: no time, thread and line of code in front of it.
    plain = logging.Formatter("%(levelname)s: %(message)s")
    absl_logging.get_absl_handler().setFormatter(plain)
    # Orbax logs through absl; what it logs of a failed write, page after page, it raises as well.
    theirs = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"
    absl_logging.get_absl_logger().addFilter(lambda record: theirs not in record.pathname)
    # So does asyncio, in which Orbax writes, of each array that was still on its way.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _shown_unless_late
    for name in ("jax", "grain"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Nor does anyone wait for an array whose turn had not come when a write failed.
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(?!moemoe_jax)")


def _shown_unless_late(unraisable: Any) -> None:
    """Shows an exception that Python could not raise, but for those that follow from one told.

    Once a write has failed, Orbax closes its event loop, and each array that is still on its way
    finds it closed, in a thread of TensorStore.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)
