"""What became of a file of rollouts, for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from veripo_ray.offline_pairs.build import Account
from veripo_ray.offline_pairs.settings import OfflinePairs
from veripo_ray.questions.left_out import LeftOut
from veripo_ray.records import Family

_NAMED = 10


def show(account: Account, cfg: OfflinePairs, console: Console) -> None:
    total = account.families.total()
    console.print(
        f"{account.questions} questions with {account.responses} responses gave {total} pairs"
    )
    console.print(_families(account, cfg))
    if account.left_out or account.without:
        console.print(_left_out(account))
    _name(account.bad, "lines that cannot be read were left out", console)
    _name(account.masked, "questions were left out, since a response could not be judged", console)


def _families(account: Account, cfg: OfflinePairs) -> Table:
    table = Table("family", box=None, pad_edge=False)
    for name in ("pairs", "share", "wanted", "quota", "of them edited"):
        table.add_column(name, justify="right")
    total, wanted = account.families.total(), sum(cfg.pairs.families.values())
    for family in Family:
        count, weight = account.families[family], cfg.pairs.families.get(family, 0.0)
        table.add_row(
            family.value,
            str(count),
            f"{count / total:.0%}" if total else "-",
            f"{weight / wanted:.0%}" if wanted else "-",
            str(cfg.pairs.quotas.get(family, "-")),
            str(account.edited[family]),
        )
    return table


def _left_out(account: Account) -> Table:
    table = Table("left out", box=None, pad_edge=False)
    table.add_column("", justify="right")
    if account.without:
        table.add_row("questions that gave no pair", str(account.without))
    for reason, count in account.left_out.most_common():
        table.add_row(f"candidates: {reason}", str(count))
    return table


def _name(items: LeftOut, what: str, console: Console) -> None:
    if items.count:
        console.print(f"[bold]{items.count} {what}:[/]")
        console.print(escape(items.told(_NAMED)), soft_wrap=True)
