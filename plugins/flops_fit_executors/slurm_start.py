"""Starts a job that submitit has submitted: ``python -P -m flops_fit_executors.slurm_start ... FOLDER``.

Submitit loads a pickle from this folder, which runs any code in it. In a shared study, another user could replace
the pickle while the job waits. This program loads it only if it is a file of this user, in a folder that is closed
to others. It is run instead of ``submitit.core._submit``, with the same arguments.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
import sys
from pathlib import Path
from typing import Any

from flops_fit_core import ConfigError


def private_folder(parent: Path) -> Path:
    """The folder ``logs`` in ``parent``, closed to other users. If another user has one, ``logs-<user id>``.

    Raises ConfigError if both belong to another user, are links or files.
    """
    folders = [parent / "logs", parent / f"logs-{os.getuid()}"]
    for folder in folders:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
        # A link from another user may lead to any folder of yours, which would then be closed to others.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            folder.chmod(0o700)
            return folder
    raise ConfigError(f"executor 'slurm': {' and '.join(map(str, folders))} are not folders of yours: remove one")


def load_private_pickle(path: str | Path) -> Any:
    """The object in a pickle. Raises PermissionError if another user could have written the file."""
    path = Path(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        with os.fdopen(handle, "rb") as file:
            is_closed = stat.S_IMODE(os.fstat(folder).st_mode) & 0o077 == 0
            owners = {os.fstat(folder).st_uid, os.fstat(handle).st_uid}
            if not is_closed or owners != {os.getuid()}:
                raise PermissionError(
                    f"{path} is not loaded: another user could have written it. Its folder must be yours, with "
                    f"permissions 0700"
                )
            return pickle.load(file)
    finally:
        os.close(folder)


def main() -> None:
    """Run submitit's program of a job, with a check of the job's pickle."""
    from submitit.core import utils
    from submitit.core.submission import process_job

    utils.DelayedSubmission.load = load_private_pickle  # type: ignore[method-assign, assignment]
    process_job(sys.argv[-1])


if __name__ == "__main__":
    main()
