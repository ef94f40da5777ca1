"""The file system of a folder. SQLite's write-ahead log needs shared memory, which network file systems lack."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "ceph", "lustre", "gpfs", "beegfs"),
        *("afs", "coda", "ncpfs", "glusterfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "panfs", "wekafs", "quobyte"),
        *("virtiofs", "vboxsf", "vmhgfs", "prl_fs", "drvfs"),
    }
)
"""File systems that several machines, or a virtual machine and its host, may share."""
_ESCAPE = re.compile(r"\\([0-7]{3})")


def is_network(folder: Path) -> bool:
    """Whether a folder is on a file system that machines may share.

    Every FUSE file system except ``fuseblk`` (a local disk) counts: sshfs, s3fs and gcsfuse are such. Outside
    Linux, only Windows network shares are recognised.
    """
    if str(folder.absolute()).startswith("\\\\"):
        return True
    kind = file_system_type(folder)
    return kind in _NETWORK or kind.startswith(("fuse.", "nfs", "smb", "beegfs"))


def file_system_type(folder: Path) -> str:
    """The type of the file system of a folder, such as ``ext4``; empty if unknown. The folder may not exist."""
    try:
        mounts = _MOUNTS.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    return type_in_mounts(folder.resolve(), mounts)


def type_in_mounts(folder: Path, mounts: str) -> str:
    """The type of the file system at an absolute path without symbolic links; empty if no mount contains it.

    Args:
        folder: The path.
        mounts: The text of ``/proc/self/mountinfo`` (``man 5 proc``). Spaces in paths are octal escapes there.
    """
    kind, longest = "", -1
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        # A later mount on the same point hides an earlier one.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            kind, longest = after.split(" ")[0], len(point.parts)
    return kind
