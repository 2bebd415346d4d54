"""Mount options by what they do: the last of several that contradict each other counts, and spelling does not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agent.host import mounter

_MEANING = {
    mounter.RDONLY: ("read-only", "writable"),
    mounter.NOSUID: ("nosuid", "suid"),
    mounter.NODEV: ("nodev", "dev"),
    mounter.NOEXEC: ("noexec", "exec"),
    mounter.NODIRATIME: ("nodiratime", "diratime"),
    mounter.NOSYMFOLLOW: ("nosymfollow", "symfollow"),
    mounter.NOATIME: ("noatime", "atime"),
    mounter.STRICTATIME: ("strictatime", "relatime"),
}
"""Attributes of a mount: what it is with each, and what without."""


def is_readonly(options: Sequence[str]) -> bool:
    """Whether these make a mount read-only."""
    return bool(_attributes(options) & mounter.RDONLY)


def difference(existing: Collection[str], options: Sequence[str]) -> str:
    """How a mount with the options `existing` (mountinfo) is, and how it is not; "" when `options` make the same.

    Of the options that are the filesystem's own nothing is said: each shows them in a way of its own.
    """
    found = _attributes_shown(existing)
    return _first(found, found ^ _attributes(options))


def lacking(existing: Collection[str], options: Sequence[str]) -> str:
    """As `difference`, but only for what `options` ask for and the mount does not do."""
    found = _attributes_shown(existing)
    return _first(found, _attributes(options) & ~found)


def _first(found: int, differing: int) -> str:
    for bit, (with_it, without) in _MEANING.items():
        if differing & bit:
            return f"{with_it}, not {without}" if found & bit else f"{without}, not {with_it}"
    return ""


def _attributes(options: Sequence[str]) -> int:
    return mounter.split(options)[0]


def _attributes_shown(existing: Collection[str]) -> int:
    """mountinfo leaves out what is the default, except `relatime`."""
    shown = _attributes(tuple(existing))
    return shown if shown & mounter.NOATIME or "relatime" in existing else shown | mounter.STRICTATIME
