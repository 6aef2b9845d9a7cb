"""A disk that is nearly full, without one."""

import contextlib
import resource


@contextlib.contextmanager
def files_of_at_most(size):
    """The system itself stops a write past `size` bytes of a file, in whatever thread it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
