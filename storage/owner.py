"""As whom guests' processes run, and so whose the files are that they open.

    owner = Owner.named("libvirt-qemu")       # Owner(): guests run as this process does, and nothing is given away
    owner.enter(folder)                       # a folder they pass through: they may not list it
    owner.give(path)                          # a guest's own file: its disk, seed, console log
    owner.lend(path)                          # what many guests read and none may write: an image

Invariant: an image is never writable for a guest's process. A process that escaped its guest could otherwise change what all
others start from. That is also why libvirt's own way (dynamic_ownership) was rejected: it gives backing files to the process,
too. Guests of one node share one user, so what keeps them from each other's disks is the host's AppArmor or SELinux (libvirt's
sVirt).
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cairn.storage.base import StorageError

PRIVATE: Final = 0o600
LENT: Final = 0o640
# Pass through, do not list.
PASSAGE: Final = 0o711


@dataclass(frozen=True, slots=True)
class Owner:
    """See the module. uid, gid: -1 for this process's own."""

    uid: int = -1
    # Images are lent to this group: the user's own, so that nobody else's processes read them.
    gid: int = -1

    @classmethod
    def named(cls, user: str) -> Self:
        """Return it by the user's name; "": guests run as this process does. StorageError when there is no such user."""
        if not user:
            return cls()
        try:
            account = pwd.getpwnam(user)
        except KeyError as error:
            raise StorageError(f"guests are to run as {user}, and this host knows no such user", retryable=False) from error
        try:
            group = grp.getgrnam(user).gr_gid
        except KeyError:
            group = account.pw_gid
        return cls(account.pw_uid, group)

    def enter(self, folder: Path) -> None:
        """Let guests' processes pass through a folder."""
        if self.uid >= 0:
            folder.chmod(PASSAGE)

    def give(self, path: Path) -> None:
        """Make a file a guest's own: nobody else's."""
        _own(path, self.uid, -1, PRIVATE)

    def lend(self, path: Path) -> None:
        """Let guests' processes read a file; without a user of their own it stays private."""
        _own(path, -1, self.gid, LENT if self.gid >= 0 else PRIVATE)


def _own(path: Path, uid: int, gid: int, mode: int) -> None:
    """Set owner and mode where they differ. A link is not followed."""
    found = path.lstat()
    if (uid >= 0 and found.st_uid != uid) or (gid >= 0 and found.st_gid != gid):
        os.chown(path, uid, gid, follow_symlinks=False)
    if found.st_mode & 0o7777 != mode and not path.is_symlink():
        path.chmod(mode)
