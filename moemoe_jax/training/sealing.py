"""Orbax's folder of a save under way, sealed before it counts as a checkpoint.

Orbax writes into a folder with a name of its own and, once all processes are done, renames it; in
a bucket, where there is no renaming, it adds a marker. Between the two the folder is sealed, so
that there is no moment at which a checkpoint has no manifest.
"""

import asyncio
from collections.abc import Callable

from etils import epath
import orbax.checkpoint as ocp

Seal = Callable[[epath.Path, int], None]


def sealed_folder(directory: epath.Path, seal: Seal) -> type:
    """A class for Orbax's option `temporary_path_class`.

    Args:
      directory: of the checkpoints.
      seal: called in a background thread of the first process, with the folder, in which nothing
        changes from then on, and the step.
    """
    in_bucket = "://" in str(directory)
    atomicity = ocp.path.atomicity
    base = atomicity.CommitFileTemporaryPath if in_bucket else atomicity.AtomicRenameTemporaryPath

    class SealedFolder(base):
        async def finalize(self) -> None:
            """Seals the folder and gives it its name."""
            if self.get_final().parent != directory:  # a part of the checkpoint
                await super().finalize()
                return
            if self._checkpoint_metadata_store:
                await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
                # The time of the commit would change a file that is sealed.
                self._checkpoint_metadata_store = None
            await asyncio.to_thread(seal, self.get(), int(self.get_final().name))
            if in_bucket:
                await super().finalize()
            else:
                await asyncio.to_thread(self.get().rename, self.get_final())

    return SealedFolder
