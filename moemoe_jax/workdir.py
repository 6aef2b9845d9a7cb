"""A work directory: all that a run leaves, and all that answering with its model needs.

    config.json   attributes.json   tokenizer/   checkpoints/   calibration.json
    metrics.jsonl   tensorboard/   goodput.json   rejects.jsonl   encodings/
    eval/<split>/{metrics.json, answers.jsonl, report.html}

An import leaves imported.txt as well, the table of what came from where.
Copy the folder, and it runs elsewhere.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from moemoe_jax.config_tree import differences, differences_text
from moemoe_jax.errors import UserError
from moemoe_jax.files import read_json

# Settings that change how a run goes but not what comes out of it: free to change on resume.
OPERATIONAL = (
    "data.threads",
    "data.prefetch",
    "data.cache_images_mib",
    "data.cache_text_mib",
    "data.max_reject_fraction",
    "mesh.",
    "train.cache_encodings",
    "train.log_every",
    "train.samples",
    "train.stall_seconds",
    "train.stall_abort_seconds",
    "answer.",
)
# Nor do these, which checkpoints keep a hash of all the same: as the run began.
HASHED = (
    "model.fusion.path",
    "model.moe.dispatch",
    "model.text.remat",
    "model.vision.remat",
    "train.keep_last",
    "train.save_every",
)


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """The paths of a work directory."""

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike) -> "WorkDir":
        """Opens the directory of a trained model.

        Raises:
          UserError: when there is none at `path`.
        """
        workdir = cls(Path(path))
        if not workdir.config.is_file():
            near = ""
            if workdir.path.parent.is_dir():
                names = [p.parent.name for p in workdir.path.parent.glob("*/config.json")]
                close = difflib.get_close_matches(workdir.path.name, names, n=1)
                near = f"; did you mean {workdir.path.parent / close[0]}?" if close else ""
            raise UserError(
                f"{path} is no work directory (it has no config.json){near or '; train one first'}"
            )
        return workdir

    @property
    def config(self) -> Path:
        """The settings of the run."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def calibration(self) -> Path:
        """What was fitted on the validation answers: calibration and thresholds."""
        return self.path / "calibration.json"

    @property
    def rejects(self) -> Path:
        """The list of records and images that could not be used."""
        return self.path / "rejects.jsonl"

    @property
    def goodput(self) -> Path:
        """Where the time of the run went, over all of its starts."""
        return self.path / "goodput.json"

    @property
    def encodings(self) -> Path:
        """Encodings kept for the next start of the run; free to delete."""
        return self.path / "encodings"

    def evaluation(self, split: str) -> Path:
        """The folder of an evaluation's results."""
        return self.path / "eval" / split

    def read_config(self) -> dict[str, Any]:
        """The settings as they were saved.

        Raises:
          UserError: when `config.json` is not JSON, or a link to elsewhere.
        """
        return read_json(self.path, self.config.name)

    def write_attributes(self, values: Mapping[str, Mapping[str, int]]) -> None:
        """Keeps the attributes that the model is trained on, each with its values and counts."""
        write_atomically(self.path / "attributes.json", json.dumps(values, indent=1) + "\n")

    def attributes(self) -> list[str]:
        """The names of the attributes that the model was trained on, in the order of the data.

        Raises:
          UserError: when `attributes.json` is missing or is not JSON.
        """
        return list(read_json(self.path, "attributes.json"))

    def belongs_to(self, config_json: str) -> bool:
        """Whether a run with these settings was begun here, which then resumes.

        Raises:
          UserError: when it belongs to a run with other settings; names the first that differ.
        """
        if not self.config.exists():
            return False
        saved, wanted = self.read_config(), json.loads(config_json)
        free = (*OPERATIONAL, *HASHED)
        different = [d for d in differences(saved, wanted) if not d[0].startswith(free)]
        if different:
            raise UserError(
                f"{self.path} belongs to a run with other settings "
                f"({differences_text(different)}); to go on, give them as they were; for other "
                "settings choose another --workdir, which can start from this one "
                "(--config.init.work_dir)"
            )
        return True

    def claim(self, config_json: str) -> None:
        """Makes this the directory of a run with these settings, unless it is one already.

        Comes last of what a run writes before its first step: a run that fails before, for its
        data or its settings, leaves nothing behind that a corrected one would stumble over.
        """
        if not self.config.exists():
            write_atomically(self.config, config_json)


def fingerprint(config_json: str) -> str:
    """A hash of the settings that a run began with, its `config.json`, which checkpoints keep."""
    # Whole numbers may come back from a file as whole or with a point.
    settings = _settings(json.loads(config_json, parse_int=float))
    kept = {path: value for path, value in settings if not path.startswith(OPERATIONAL)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _settings(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each setting that is no group of settings, by its path."""
    if not isinstance(node, Mapping):
        yield path, node
        return
    for key, value in node.items():
        yield from _settings(value, f"{path}.{key}" if path else key)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + f".part{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)
