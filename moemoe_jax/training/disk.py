"""What a disk has to say about a checkpoint: that there is no room, before a write or during it."""

from collections.abc import Iterator
import contextlib
import errno
import os
import re
import shutil

from etils import epath

from moemoe_jax.training import together


def require_room(directory: epath.Path, size: int) -> None:
    """Checks that `size` bytes fit where `directory` is; a bucket has room.

    Raises:
      OSError: ENOSPC, when they do not; with several processes, in all of them.
    """
    problem = ""
    if "://" not in str(directory):
        free = shutil.disk_usage(directory).free
        if size > free:
            problem = f"{size / 1e9:.3g} GB needed, {free / 1e9:.3g} GB free"
    if problem := together.first_problem(problem):
        text = f"{os.strerror(errno.ENOSPC)} ({problem})"
        raise OSError(errno.ENOSPC, text, str(directory))


@contextlib.contextmanager
def told_as_os_errors(directory: epath.Path) -> Iterator[None]:
    """Gives what stops a write, such as a full disk, as the system's error for the directory.

    TensorStore writes in the background and tells of it later, as a ValueError whose text holds
    the system's number; Python's own writes there may not know the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise _unwritten(directory, error.errno) from error
    except ValueError as error:
        number = re.search(r"\[os_error_code='(\d+)'\]", str(error))
        if number is None:
            raise
        raise _unwritten(directory, int(number[1])) from error


def _unwritten(directory: epath.Path, number: int) -> OSError:
    return OSError(number, os.strerror(number), str(directory))
