"""Verdicts as a table for people."""

from __future__ import annotations

from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from veripo_ray.records import Check, Verdict


class Table:
    """One row a response: the checks that it fails, and what is wrong in words."""

    def __init__(self) -> None:
        self._table = RichTable(box=box.SIMPLE_HEAD, show_edge=False)
        self._table.add_column("item", no_wrap=True)
        self._table.add_column("question", max_width=16, overflow="ellipsis", no_wrap=True)
        self._table.add_column("verdict", no_wrap=True)
        self._table.add_column("what is wrong", min_width=24, overflow="fold")
        self._rows = self._faulty = self._errors = 0

    def add(self, question_id: str, verdict: Verdict) -> None:
        self._rows += 1
        faults = [check for check in verdict.checks if check.passed is False]
        errors = [check for check in verdict.checks if check.error is not None]
        self._faulty += bool(faults)
        self._errors += bool(errors)
        # An item that is not valid fails every check alike.
        said = dict.fromkeys([*(c.reason for c in faults), *(c.error or "" for c in errors)])
        row = (str(self._rows), Text(question_id), _word(faults, errors), Text("\n".join(said)))
        self._table.add_row(*row)

    def print(self, out: TextIO) -> None:
        console = Console(file=out, highlight=False)
        console.print(self._table)
        console.print(
            f"{self._rows} responses: {self._faulty} with faults, {self._errors} with errors"
        )


def _word(faults: list[Check], errors: list[Check]) -> Text:
    if faults:
        return Text("\n".join(check.name for check in faults), "bold red")
    return Text("error", "bold magenta") if errors else Text("ok", "green")
