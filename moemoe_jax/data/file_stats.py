"""What tells that files were changed without reading them: their sizes and times of change.

A copy may change the time: `cp -p` and `rsync -t` keep it.
"""

import hashlib
import os
from pathlib import Path

from moemoe_jax.data.records import Record


class FileStats:
    """A digest of the sizes and times of change of files, in the order in which they come.

    Of names there is nothing in it: files are named by what has a digest of its own, and where a
    folder lies does not matter.
    """

    def __init__(self):
        self._found = hashlib.blake2b(digest_size=16)

    def add(self, file: Path) -> None:
        """Adds a file; one that is not there counts as well."""
        try:
            stat = os.stat(file)
            told = f"{stat.st_size} {stat.st_mtime_ns}\n"
        except OSError:
            told = "none\n"
        self._found.update(told.encode())

    def add_images(self, record: Record) -> None:
        """Adds the image files that a record names."""
        for value in record.sources.values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Path):
                    self.add(part)

    def digest(self) -> str:
        """Of all files so far."""
        return self._found.hexdigest()
