"""What a folder holds, without what differs between equal runs: times."""

import hashlib
import json

from tests.chaos.kills.commands import TIMES

Tree = dict[str, str]
TIMED = ("metrics.jsonl", "stream.jsonl", "exported.json")  # records with times


def tree(folder):
    """Returns the content of every file below a folder as a digest, and of every folder as ""; by
    path.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = "" if path.is_dir() else _digest(path)
    return found


def state(folder):
    """Returns the identity, the size and the time of change of every file below a
    folder, by path.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.stat()
        found[str(path.relative_to(folder))] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def differences(found, expected):
    """Describes how two trees differ; "" if they are equal."""
    lines = [f"missing: {path}" for path in expected if path not in found]
    lines += [f"left over: {path}" for path in found if path not in expected]
    lines += [
        f"other content: {path}"
        for path in found
        if path in expected and found[path] != expected[path]
    ]
    return "; ".join(lines)


def _digest(path):
    content = path.read_bytes()
    # its tables hold times, and the records of metrics.jsonl are compared
    if path.name == "report.md":
        content = content.splitlines()[0]
    if path.name in TIMED:
        texts = content.splitlines() if path.suffix == ".jsonl" else [content]
        records = [json.loads(text) for text in texts]
        kept = [
            {name: value for name, value in each.items() if name not in TIMES} for each in records
        ]
        # losses of an epoch that was resumed are sorted by name
        content = json.dumps(kept, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
