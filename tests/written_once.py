"""SavedModels that several tests need are written once per process; each test gets a copy."""

import functools
import os
import shutil
import tempfile

_FOLDER = tempfile.TemporaryDirectory()


def written_once(write):
    """Decorates a function (path, **arguments) -> path that writes a folder."""
    written = {}

    @functools.wraps(write)
    def copy(path, **arguments) -> str:
        key = repr(sorted(arguments.items()))
        if key not in written:
            written[key] = write(
                os.path.join(_FOLDER.name, f"{write.__name__}_{len(written)}"), **arguments
            )
        return shutil.copytree(written[key], str(path))

    return copy
