"""What a check hands back, and how checks are kept from hanging or taking the doctor down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `fail` would stop a run, `warn` would hamper it."""

    name: str
    status: Status
    seen: str
    fix: str = ""


Check = Callable[[], Finding]


class Running:
    """A check under way in a thread of its own."""

    def __init__(self, check: Check) -> None:
        self._name = check.__name__.replace("_", " ")
        self._finding: Finding | None = None
        self._thread = threading.Thread(target=self._run, args=(check,), daemon=True)
        self._thread.start()

    def finding(self, deadline: float) -> Finding:
        """What the check found, or that it found nothing until `deadline` (time.monotonic)."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        fix = "look for a hanging device or file system, or try again on a quieter machine"
        return self._finding or Finding(self._name, "fail", "no answer in time", fix)

    def _run(self, check: Check) -> None:
        try:
            self._finding = check()
        except Exception as error:  # noqa: BLE001  # whatever it is belongs into the table
            seen = f"the check itself failed: {type(error).__name__}: {error}"
            self._finding = Finding(self._name, "fail", seen, "report it: a bug of `veripo doctor`")
