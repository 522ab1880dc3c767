"""Writing a file so that it is either whole or not there: into a temporary file beside it, then renamed over it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, in the same folder and with the same suffix; `path` appears when the block ends well
    and stays as it was when the block raises, Ctrl-C included."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:32]}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; what a user asked to be written is as readable as any other file of theirs.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
