"""The child process of `maths`: JSON requests in, JSON replies out, over one inherited pipe.

Run as a script, not imported: `maths_child.py PIPE_FD SECONDS`. Ends when its parent does.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

MEMORY_BYTES = 4 << 30
_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin\{")


def main() -> None:
    pipe, seconds = Connection(int(sys.argv[1])), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    _answer({"op": "equal", "gold": "1/2", "answer": "0.5"}, seconds)  # import and warm up
    pipe.send_bytes(b"{}")
    with open(os.devnull, "w") as nowhere:
        while True:
            try:
                request = json.loads(pipe.recv_bytes())
            except EOFError:
                return
            # Ends the process from a C thread, even when Python's own lock is held.
            faulthandler.dump_traceback_later(seconds + 1, exit=True, file=nowhere)
            reply = _answer(request, seconds)
            faulthandler.cancel_dump_traceback_later()
            pipe.send_bytes(json.dumps(reply).encode())


def _answer(request: dict[str, str], seconds: float) -> dict[str, Any]:
    from math_verify.errors import TimeoutException  # not an Exception, but a BaseException

    try:
        gold = _parse(request["gold"], seconds)
        if request["op"] == "parses":
            return {"result": bool(gold)}
        return {"result": _equal(gold, _parse(request["answer"], seconds), seconds)}
    except TimeoutException:
        return {"error": f"it took more than {seconds:g} s"}
    except (MemoryError, RecursionError) as error:
        return {"error": f"{type(error).__name__}: the expression is too large"}


def _parse(latex: str, seconds: float) -> list[Any]:
    from math_verify import parse

    delimited = latex if _DELIMITED.search(latex) else f"${latex}$"
    try:
        return parse(
            delimited,
            fallback_mode="no_fallback",
            parsing_timeout=round(seconds),
            raise_on_error=True,
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - whatever sympy raises at text that is no mathematics
        return []


def _equal(gold: list[Any], answer: list[Any], seconds: float) -> bool:
    from math_verify import verify

    try:
        return verify(gold, answer, timeout_seconds=round(seconds), raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - sympy's word for "these two kinds cannot be compared"
        return False


if __name__ == "__main__":
    main()
