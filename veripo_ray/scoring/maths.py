"""Free-form maths through `math_verify`, in a child process with hard bounds.

math_verify bounds its own work by signals, which exist only in a main thread and cannot stop a
long computation inside C code; a policy will sooner or later write `9^{9^{9^9}}`. The child has a
main thread of its own, a limit on memory, and is killed when an answer takes too long.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from veripo_ray.errors import ResourceError, ScoringError
from veripo_ray.scoring.answers import MAX_ANSWER_CHARACTERS

SECONDS = 3.0  # for one comparison; a usual one takes milliseconds
_START_SECONDS = 60.0  # importing sympy on a busy machine
_MARGIN_SECONDS = 2.0
_CHILD = Path(__file__).with_name("maths_child.py")


def parses(latex: str) -> bool:
    """Whether math_verify reads an expression in `latex`. It is not asked about what is too long
    for an answer."""
    return len(latex) <= MAX_ANSWER_CHARACTERS and _ask("parses", latex)


def equal(gold: str, answer: str) -> bool:
    """Whether `answer` equals `gold`. Raises ScoringError when it cannot be told in time."""
    return _ask("equal", gold, answer)


# The rollouts of a question share its gold, and often their answer. What could not be told in time
# is not remembered, and asked again.
@lru_cache(maxsize=16_384)
def _ask(op: str, gold: str, answer: str = "") -> bool:
    return _THE_CHILD.ask(op=op, gold=gold, answer=answer)


class _Child:
    """Started when first needed, and again after it had to be killed. One question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def ask(self, **request: Any) -> bool:
        with self._lock:
            reply = self._exchange(request)
        if "result" not in reply:
            raise ScoringError(
                f"{_shown(request)} could not be worked out: {reply['error']}",
                fix="simplify the gold answer if its question fails again and again",
            )
        return reply["result"]

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        pipe = self._started()
        try:
            pipe.send_bytes(json.dumps(request).encode())
            if pipe.poll(SECONDS + _MARGIN_SECONDS):
                return json.loads(pipe.recv_bytes())
        except (EOFError, OSError):  # it died: out of time inside C code, or out of memory
            pass
        self.stop()
        return {"error": f"it took more than {SECONDS:g} s or too much memory"}

    def _started(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        ours, theirs = Pipe()
        with theirs:
            handle = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD), str(handle), str(SECONDS)],
                pass_fds=[handle],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._pipe = ours
        self._wait_until_ready(ours)
        return ours

    def _wait_until_ready(self, pipe: Connection) -> None:
        try:
            if pipe.poll(_START_SECONDS):
                pipe.recv_bytes()
                return
        except (EOFError, OSError):
            pass
        self.stop()
        raise ResourceError(
            f"the maths process did not start within {_START_SECONDS:g} s",
            fix=f"see what `{sys.executable} -c 'import math_verify'` says",
        )

    def stop(self) -> None:
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.wait()


def _shown(request: dict[str, Any]) -> str:
    texts = {key: value for key, value in request.items() if key != "op" and value}
    return ", ".join(f"{key} {str(value)[:80]!r}" for key, value in texts.items())


_THE_CHILD = _Child()
atexit.register(_THE_CHILD.stop)
