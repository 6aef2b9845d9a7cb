"""Trains in a forked process, which may be killed there or signalled at an exact moment.

A fork shares the imports, which take longer than the steps of these tests; JAX's backend is only
started in the child. So a module that uses this must not have run any JAX in its own process.
"""

from collections.abc import Callable
import os
from pathlib import Path
import sys
import traceback

STEPS = 20


def settings(**train):
    """Twenty steps with dropout, augmentation and gradient accumulation on."""
    from tests.launch.tiny import get_config

    config = get_config()
    config.model.text.dropout = 0.1
    config.train.steps, config.train.accumulation = STEPS, 2
    config.train.eval_every, config.train.save_every = 10, 1
    config.train.update(train)
    return config


def in_child(job: Callable[[], None], log: Path) -> int:
    """Runs `job` in a fork whose output goes to `log`; returns its status as `subprocess` does."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        with log.open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.stdout = sys.stderr = out
            status = _run(job)
            out.flush()
    finally:
        os._exit(status)


def _run(job: Callable[[], None]) -> int:
    import jax

    from moemoe_jax.errors import STOPPED, Stopped

    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", os.environ["FORKED_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        job()
    except Stopped:
        return STOPPED
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
