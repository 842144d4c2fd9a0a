"""Simulates a power failure at every point of a publication, from what the process has flushed to
disk.

A file is on disk as of its last fsync, and a folder's names as of the folder's last fsync. Of what
was not flushed, a disk may hold any part: here, every folder holds its flushed or its present
names, and files that changed after their last fsync are torn.
"""

import os
from itertools import product

from .file_calls import before_each_call

TORN = "torn"


class Disk:
    """Observes what happens below ``root``, which is on disk as a whole at first.

    Attributes:
        states: by point in time, all that a reader could find at ``target`` after a power failure.
    """

    def __init__(self, root, target):
        self.root = root
        self.target = target
        self.states = []
        self.content, self.names = {}, {}  # by inode number: as of the last fsync
        self.open = {}  # keeps inode numbers from being used again
        for path in [root, *root.rglob("*")]:
            self._flush(path)

    def run(self, publish, exchange=True):
        with before_each_call(self._observe, exchange, flushed=self._flush):
            publish()
        self._observe()

    def read(self, number):
        """Returns the content of the file with an inode number, which may have been replaced."""
        return os.pread(self.open[number], os.fstat(self.open[number]).st_size, 0)

    def _flush(self, path):
        number = self._number(path)
        if os.path.isdir(path):
            self.names[number] = self._present(path)
        else:
            self.content[number] = self._version(path)

    def _observe(self, name=None):
        for path in self.root.rglob("*"):
            self._number(path)
        parts = self.target.relative_to(self.root).parts
        self.states.append(list(self._trees(self._number(self.root), parts)))

    def _number(self, path):
        number = os.stat(path).st_ino
        if number not in self.open:
            self.open[number] = os.open(path, os.O_RDONLY)
        return number

    def _present(self, path):
        return {entry.name: entry.inode() for entry in os.scandir(path)}

    def _version(self, path):
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns

    def _trees(self, number, parts=()):
        """Yields what the disk may hold: a file's number or ``TORN``, or the trees of a folder by
        name.

        With ``parts``, what the folder may hold at this path, None for nothing.
        """
        path = f"/proc/self/fd/{self.open[number]}"
        if not os.path.isdir(path):
            yield number if self.content.get(number) == self._version(path) else TORN
            return
        versions = [self.names.get(number, {}), self._present(path)]
        for names in versions[: 1 if versions[0] == versions[1] else 2]:
            if parts:
                yield from self._trees(names[parts[0]], parts[1:]) if parts[0] in names else [None]
                continue
            for trees in product(*(list(self._trees(each)) for each in names.values())):
                yield dict(zip(names, trees))


def whole(path):
    """Returns the tree of a file or folder that is on disk as a whole, or None if it is absent."""
    if not path.exists():
        return None
    return (
        {each.name: whole(each) for each in path.iterdir()} if path.is_dir() else path.stat().st_ino
    )


def cut(root, target, publish, exchange=True):
    """Asserts that at every point a power failure leaves the former or the new ``target``, and in
    the end the new.
    """
    disk = Disk(root, target)
    before = whole(target)
    disk.run(publish, exchange)
    after = whole(target)
    for number, states in enumerate(disk.states):
        for found in states:
            assert found in (before, after), f"before call {number} of {len(disk.states)}: {found}"
    assert all(found == after for found in disk.states[-1])
    assert before != after
