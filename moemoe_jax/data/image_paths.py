"""Image paths of records: relative to the data's folder, and never out of it.

A record file may come from anywhere; what it names must not make a job read other files of the
machine, neither by an absolute path nor by `..` nor through a link.
"""

import functools
import os
from pathlib import Path


class RecordError(ValueError):
    """Why one record cannot be used. The text up to the first colon is the kind of the reason."""


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def image_path(text: str, base_dir: Path | str | None) -> Path:
    """The file that `text` names, which must lie in `base_dir` after links are followed.

    Whether the file is there is not looked at.

    Raises:
      RecordError: it leads outside, is a link to the web, or there is no folder.
    """
    if "://" in text:
        raise RecordError(f"image is a link: {text!r}; download it and give its path")
    if base_dir is None:
        raise RecordError(f"image is a path: {text!r}; this source has no folder, give bytes")
    if "\0" in text:
        raise RecordError("wrong image: a NUL character in the path")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecordError(f"wrong image: half a surrogate pair in the path {text!r}") from None
    root = _real_folder(str(base_dir))
    folder, leaf = os.path.split(os.path.join(root, text))
    path = os.path.join(_real_folder(folder), leaf)
    if leaf in ("", ".", "..") or os.path.islink(path):
        path = os.path.realpath(path)
    if os.path.commonpath([root, path]) != root:
        raise RecordError(f"image path leads outside the data folder: {text!r}")
    return Path(path)
