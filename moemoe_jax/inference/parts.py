"""Answers on their way to one file: a part a window, so that a killed job loses one window.

    .answers.jsonl.parts/manifest.json     what the answers depend on
    .answers.jsonl.parts/00000012.jsonl    the answers of window 12, complete
    .answers.jsonl.parts/00000012.json     what was noted of it on the way, if anything was

A part appears whole or not at all; the parts are joined in order, and the file takes its name.
"""

from collections.abc import Iterable
import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
import shutil
from typing import Any, BinaryIO

import jax

from moemoe_jax.config_tree import differences, differences_text
from moemoe_jax.data.notes import Notes
from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import ScoredAnswer, read_answers, replacing, write_answers
from moemoe_jax.workdir import write_atomically

_MANIFEST = "manifest.json"
_JOINED = "joined"  # there once all parts are, so that an output beside it may be ours
_NOUNS = {
    "input": "another input",
    "weights": "another model or checkpoint",
    "tokenizer": "another tokenizer",
    "settings": "other settings",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parts:
    """The parts of one output; made by `open_parts`.

    Attributes:
      done: the numbers of the windows that are answered.
      resumed: whether the output was begun before.
    """

    def __init__(self, output: Path, folder: Path, lock: BinaryIO | None, resumed: bool):
        self._output, self._folder, self._lock = output, folder, lock
        self.resumed = resumed
        self.look()

    def look(self) -> None:
        """Finds out what is answered, by other processes as well."""
        self.done = {int(path.stem) for path in self._folder.glob("*.jsonl")}

    def check_files(self, digest: str) -> None:
        """Notes the digest of the other files that the input is read from, or compares it.

        It is known only once the input is open, and the output is begun before.

        Args:
          digest: `files_digest` of the source.

        Raises:
          UserError: another one was noted, and there are answers.
        """
        begun = _begun(self._folder)
        if begun["files"] == digest:
            return
        if begun["files"] is not None and self.done:
            raise _begun_with(
                self._output,
                "other files that its input names, such as images (their sizes or times of change "
                "differ; cp -p and rsync -t keep the time)",
            )
        _write_manifest(self._folder, begun | {"files": digest})

    def idle(self, windows: int, records: int) -> str:
        """A line for where fewer windows are to be answered than there are processes, else empty.

        Args:
          windows: of the output, those answered among them.
          records: of the input.
        """
        left, count = windows - len(self.done), jax.process_count()
        if not 0 < left < count:
            return ""
        told = f"note: {left} window{'s' * (left > 1)} for {count} processes: {count - left} idle"
        fits = records // count  # a job that goes on must keep its windows
        return f"{told}; --answer=window={fits} makes more" if fits and not self.done else told

    def write(
        self, number: int, answers: list[ScoredAnswer], noted: dict[str, dict[str, Any]]
    ) -> None:
        """Writes the answers of a window down for good.

        Args:
          number: of the window.
          answers: to its questions.
          noted: of it, by `Notes.take`.

        Raises:
          UserError: the disk is full, or the folder cannot be written to.
        """
        path = self._path(number)
        lines = (json.dumps(a.to_json(), ensure_ascii=False, allow_nan=False) for a in answers)
        with told(self._output):
            if noted:  # before the answers, with which the window is done
                _write_down(path.with_suffix(".json"), [json.dumps(noted)])
            _write_down(path, lines)
        self.done.add(number)

    def notes(self) -> Notes:
        """What was noted of all windows that are done, by whichever process and start did them."""
        notes = Notes()
        for number in sorted(self.done):
            with contextlib.suppress(FileNotFoundError):  # there was nothing to note
                notes.put(json.loads(self._path(number).with_suffix(".json").read_bytes()))
        return notes

    def join(self, windows: int) -> int:
        """Puts the parts of all windows into the output, and removes them.

        Returns:
          the number of answers.
        """
        paths = [self._path(number) for number in range(windows)]
        with told(self._output):
            (self._folder / _JOINED).touch()
            if self._output.suffix == ".parquet":
                count = write_answers(
                    self._output, (a for path in paths for a in read_answers(path))
                )
            else:
                count = self._concatenate(paths)
            self.close()
            shutil.rmtree(self._folder)
        return count

    def _concatenate(self, paths: list[Path]) -> int:
        count = 0
        with replacing(self._output) as temporary, temporary.open("wb") as out:
            for path in paths:
                content = path.read_bytes()
                count += content.count(b"\n")
                out.write(content)
            out.flush()
            os.fsync(out.fileno())
        return count

    def close(self) -> None:
        """Lets another job go on with the parts."""
        if self._lock is not None:
            self._lock.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.jsonl"


def check_output(output: Path, overwrite: bool = False) -> None:
    """Refuses what `open_parts` would refuse for certain, at once and without making anything.

    Raises:
      UserError: the output is a folder, or exists and was not begun here, or has no place.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file in it as --output")
    if output.exists() and not overwrite and not _folder(output).exists():
        raise _exists(output)
    place = next(folder for folder in output.absolute().parents if folder.exists())
    if not place.is_dir():
        raise UserError(f"{place} is a file, so {output} cannot be in it; choose another --output")
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written to; choose another --output")


def _folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


def _exists(output: Path) -> UserError:
    return UserError(f"{output} exists; choose another --output or add --overwrite")


def _begun_with(output: Path, changed: str) -> UserError:
    return UserError(
        f"{output} was begun with {changed}: give what it was begun with to go on, choose another "
        "--output, or add --overwrite to start anew"
    )


def open_parts(output: Path, fingerprint: dict[str, Any], overwrite: bool = False) -> Parts:
    """Begins an output, or goes on with one that was begun with the same fingerprint.

    Args:
      output: the file to be; `.jsonl` or `.parquet`.
      fingerprint: of all that the answers depend on, by topic, in JSON types.
      overwrite: start anew, and replace the output if there is one.

    Raises:
      UserError: the output exists, or was begun with something else, or another process is at it.
    """
    folder = _folder(output)
    with told(output):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder, output)
        try:
            resumed = not overwrite and _resumes(folder, output, fingerprint)
            if not resumed:
                _empty(folder)
                replaces = output.exists()
                _write_manifest(folder, {"fingerprint": fingerprint, "replaces": replaces})
        except BaseException:
            lock.close()
            raise
    return Parts(output, folder, lock, resumed)


def share_parts(output: Path, resumed: bool) -> Parts:
    """The parts of an output that the first process of this job has opened, for another one."""
    return Parts(output, _folder(output), None, resumed)


def _resumes(folder: Path, output: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether the parts are of this very output; raises UserError where that must not go on."""
    begun = _begun(folder)
    answered = any(folder.glob("*.jsonl"))
    if begun is not None and begun["fingerprint"] != fingerprint and answered:
        old = begun["fingerprint"]
        changed = [noun for name, noun in _NOUNS.items() if old.get(name) != fingerprint[name]]
        if settings := list(differences(old.get("settings"), fingerprint["settings"])):
            changed[-1] += f" ({differences_text(settings)})"
        raise _begun_with(output, " and ".join(changed))
    same = begun is not None and begun["fingerprint"] == fingerprint
    # A job that was killed behind its last move has left its output, and its parts as well.
    if output.exists() and not (same and (begun["replaces"] or (folder / _JOINED).exists())):
        if not answered:
            shutil.rmtree(folder)
        raise _exists(output)
    return same


def _begun(folder: Path) -> dict | None:
    """What the manifest says; None where there is none, or none that can be read."""
    try:
        found = json.loads((folder / _MANIFEST).read_text())
        begun = {"fingerprint": dict(found["fingerprint"]), "replaces": bool(found["replaces"])}
        return begun | {"files": found.get("files")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_manifest(folder: Path, begun: dict[str, Any]) -> None:
    write_atomically(folder / _MANIFEST, json.dumps(begun, indent=1) + "\n")


def _lock(folder: Path, output: Path) -> BinaryIO:
    """Locks the folder for this process; the lock goes with the process, however that ends."""
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"another process is writing {output}: wait for it, or choose another --output"
        ) from None
    return lock


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            path.unlink()


def _write_down(path: Path, lines: Iterable[str]) -> None:
    """Writes a file that is there whole or not at all, whatever happens to the machine."""
    part = path.with_suffix(".tmp")
    with part.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(line + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


@contextlib.contextmanager
def told(output: Path):
    """Turns a full disk into one line about `output`: the error itself names no file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"no room to write {output} ({error.strerror}): make room there; the same command "
                "goes on where this one stopped"
            ) from error
        raise
