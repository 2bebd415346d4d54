"""`python -m tests.crash.launcher WIRE FOLDER...`: starts agents that die when told to.

The modules are imported once and each agent is forked from here, so that a restart takes a tenth of a second. What it
changes is at the edges of the standard library, nowhere in the agent: commits of sqlite3, programs started by
subprocess, and files and directories made, moved or removed in FOLDERs or relative to a descriptor.

One JSON object a line on stdin, {"argv": [...], "log": path}; the process id of the agent is the answer.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.crash.tripwire import RUN, Phase, Tripwire

READ_ONLY = (("blkid",), ("losetup", "--json"), ("content.py", "look"), ("content.py", "hold"), ("findmnt",))
"""Programs that change nothing: to be killed around them is to be killed after what was done before."""


def watch_commits(wire: Tripwire) -> None:
    class Connection(sqlite3.Connection):
        _writes: list[str] | None = None

        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if sql == "BEGIN IMMEDIATE":
                self._writes = []
            elif sql.startswith("INSERT INTO changes") and self._writes is not None:
                self._writes += [
                    f"{kind} {event}" for kind, event in zip(parameters[1::5], parameters[3::5], strict=True)
                ]
            elif sql == "COMMIT" and self._writes is not None:
                writes, self._writes = self._writes, None
                # Each write counts: what is written at once may go in one commit, or in several. One of nothing (a
                # conflict) changes nothing.
                with wire.passing(*(f"commit {write}" for write in writes)):
                    return super().execute(sql, parameters)
            return super().execute(sql, parameters)

    connect = sqlite3.connect

    def watched(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        return connect(*args, factory=Connection, **kwargs)

    sqlite3.connect = watched  # type: ignore[assignment]


def watch_programs(wire: Tripwire) -> None:
    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, args: Any, *more: Any, **kwargs: Any) -> None:
            argv = _program(args)
            self._number = 0 if _is_read_only(argv) else wire.count(f"{RUN} {' '.join(argv[:3])}")
            wire.trip(self._number, Phase.BEFORE)
            super().__init__(args, *more, **kwargs)
            wire.trip(self._number, Phase.DURING)

        def wait(self, timeout: float | None = None) -> int:
            code: int = super().wait(timeout)
            wire.trip(self._number, Phase.AFTER)
            return code

    subprocess.Popen = Popen  # type: ignore[misc]


def _program(args: Any) -> list[str]:
    """The command line without what guards it (agent.host.process)."""
    argv = [os.fspath(each) for each in args]
    if Path(argv[0]).name == "setpriv" and "/bin/sh" in argv:
        argv = argv[argv.index("/bin/sh") + 4 :]
    if Path(argv[0]).name.startswith("python"):
        argv = [each for each in argv[1:] if not each.startswith("-")]
    return [Path(each).name if each.startswith("/") else each for each in argv]


def _is_read_only(argv: list[str]) -> bool:
    return any(tuple(argv[: len(each)]) == each for each in READ_ONLY)


def watch_files(wire: Tripwire, folders: list[Path]) -> None:
    for name in ("mkdir", "rmdir", "unlink", "replace", "rename"):
        setattr(os, name, _watched(wire, folders, name, getattr(os, name)))
    opened = os.open

    def watched(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is None or not flags & os.O_CREAT:
            return opened(path, flags, mode, dir_fd=dir_fd)
        with wire.passing(f"create {os.fspath(path)}"):
            return opened(path, flags, mode, dir_fd=dir_fd)

    os.open = watched


def _watched(wire: Tripwire, folders: list[Path], name: str, function: Any) -> Any:
    def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
        text = os.fspath(path)
        relative = any(kwargs.get(each) is not None for each in ("dir_fd", "src_dir_fd"))
        if not relative and not any(text.startswith(f"{folder}{os.sep}") for folder in folders):
            return function(path, *args, **kwargs)
        with wire.passing(f"{name} {Path(text).name}"):
            return function(path, *args, **kwargs)

    return watched


def serve() -> None:
    from agent.cli.main import main
    from agent.daemon import standalone  # noqa: F401 - so that agents need not import it

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for agents here: who kills one watches it
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become(order["argv"], order["log"])
            main()
        print(pid, flush=True)


def _become(argv: list[str], log: str) -> None:
    devnull = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, standard in ((devnull, 0), (output, 1), (output, 2)):
        os.dup2(source, standard)
    sys.argv[1:] = argv


if __name__ == "__main__":
    the_wire = Tripwire(Path(sys.argv[1]))
    watch_commits(the_wire)
    watch_programs(the_wire)
    watch_files(the_wire, [Path(each) for each in sys.argv[2:]])
    serve()
