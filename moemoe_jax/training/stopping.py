"""A run that is asked to stop: by SIGTERM, by SIGINT, or by SIGUSR1 as Slurm sends it ahead.

A signal reaches the processes of a job at different times, or only one of them, but all must save
after the same step. So each process asks `Stop.agreed()` at the same points (after every step,
between the batches of an evaluation), and it turns true at the same call on all of them.

Nothing here imports JAX until a step was taken: a signal is heard from the first moment on.
"""

import os
import signal
import sys
import threading

from moemoe_jax.errors import INTERRUPTED, STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Whether the run is to stop. Without `listen` nobody ever asks for it.

    A thread hears the signals, not the main thread's handlers: those wait until the main thread is
    back from a call such as a compilation, which may take minutes.
    """

    def __init__(self):
        self._asked: signal.Signals | None = None
        self._interrupts = 0
        self._unsaved = self._agreed = self._passed_on = False
        self._processes, self._calls = 0, 0

    def listen(self) -> "Stop":
        """Takes the signals over, for the life of the process; only in the main thread."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            # A handler must be there for the number to be written to the pipe.
            signal.signal(number, _nothing)
        # A forked child shares the pipe: what ends it, even at once, must not stop its parent.
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
        threading.Thread(target=self._hear, args=(read,), name="signals", daemon=True).start()
        return self

    @property
    def reason(self) -> str:
        """What stopped the run, to stand behind "stopped": "by SIGTERM"; "on request" of others."""
        return "on request" if self._asked is None else f"by {self._asked.name}"

    def keep(self) -> None:
        """Says that from now on there is something to save.

        Until then, a process that is alone exits as soon as it is asked to, also during a
        compilation: what a resumed run has it has from its checkpoint.
        """
        self._unsaved = True

    def agreed(self) -> bool:
        """Whether to stop here. All processes call it at the same points, and get the same answer.

        It costs a single process nothing. Several hear of a signal to any one of them through
        JAX's coordination service, within about two seconds.
        """
        if not self._agreed:
            self._agreed = self._ask()
        return self._agreed

    def _ask(self) -> bool:
        import jax
        from jax.experimental import multihost_utils

        self._processes = self._processes or jax.process_count()
        if self._processes == 1:
            return self._asked is not None
        if self._asked is not None and not self._passed_on:
            # The service listens to SIGTERM alone, and only since it was started.
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def _hear(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number in SIGNALS:
                    self._take(signal.Signals(number))

    def _take(self, number: signal.Signals) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self._leave(
                INTERRUPTED,
                "interrupted twice, left at once; the same command goes on from the last "
                "checkpoint",
            )
        if self._asked is not None:
            return
        self._asked = number
        if not self._unsaved and not _among_several():
            self._leave(
                STOPPED,
                f"stopped by {number.name} before a step was taken: there was nothing to save; the "
                "same command starts again where this one did",
            )
        times = "again" if number == signal.SIGINT else "twice"
        self._say(f"{number.name}: saving and stopping at the next step (SIGINT {times}: at once)")

    def _leave(self, status: int, text: str) -> None:
        try:
            self._say(text)
        finally:
            os._exit(status)

    def _say(self, text: str) -> None:
        # Past Python's own buffers, whose locks the main thread may hold.
        os.write(2, f"train: {text}\n".encode())


def _among_several() -> bool:
    """Whether other processes wait for this one at the next `agreed`."""
    jax = sys.modules.get("jax")
    return hasattr(jax, "distributed") and jax.distributed.is_initialized()


def _nothing(*_: object) -> None:
    """The main thread's part in a signal."""


def _hold() -> None:
    """Keeps the signals waiting in the thread that forks."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _forget() -> None:
    """Gives a forked child the system's own reaction to the signals."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _release()
