"""From a file of rollouts to a file of pairs, a few questions at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from veripo_ray.errors import DataError
from veripo_ray.messages import like
from veripo_ray.offline_pairs import rows
from veripo_ray.offline_pairs.rows import Asked
from veripo_ray.offline_pairs.settings import OfflinePairs
from veripo_ray.pairs import build_pairs
from veripo_ray.questions.left_out import LeftOut
from veripo_ray.questions.rows import read_rows
from veripo_ray.records import Group, JudgedGroup, Pair, Response, Verdict
from veripo_ray.runlog import BadItem
from veripo_ray.texts import group_of_texts
from veripo_ray.verifier.sources import Verdicts
from veripo_ray.verifier.tokens import Encode, encoder
from veripo_ray.verifier.verify import Item

_QUESTIONS = 32  # judged at once


@dataclass
class Account:
    """What became of a file. `families` counts pairs, `edited` those with an edited side;
    `left_out` the candidates that became no pair, by reason; `bad` are lines that could not be
    read, `masked` questions with an error in a verdict."""

    questions: int = 0
    responses: int = 0
    without: int = 0  # questions that gave no pair although they were judged
    families: Counter[str] = field(default_factory=Counter)
    edited: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    bad: LeftOut = field(default_factory=LeftOut)
    masked: LeftOut = field(default_factory=LeftOut)


def build_file(file: Path, out: TextIO, cfg: OfflinePairs) -> Account:
    """Write the pairs of `file`, one JSON object a line, as TRL and OpenRLHF read them.

    Raises DataError for a file that cannot be read, ConfigError and ResourceError for a judge that
    cannot be built or reached; a bad line or question is left out, and the account says why.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}", fix="give a JSONL file of rollouts")
    builder = _Builder(cfg)
    questions = iter(rows.read(read_rows(file), cfg.kind, builder.account.bad))
    while few := list(islice(questions, _QUESTIONS)):
        for prompt, pair in builder.pairs(few):
            out.write(json.dumps(_line(prompt, pair)) + "\n")
    return builder.account


class _Builder:
    """One balance of families for the whole file."""

    def __init__(self, cfg: OfflinePairs) -> None:
        self._cfg, self._verdicts = cfg, Verdicts(cfg)
        self._checks, self._encode = self._verdicts.checks(), encoder(cfg.tokenizer)
        self.account = Account()

    def pairs(self, asked: Sequence[Asked]) -> Iterator[tuple[Any, Pair]]:
        """Each pair with the prompt of its question."""
        items = [Item.of(one.question, r.text) for one in asked for r in one.responses]
        verdicts = iter(self._verdicts(items))
        for one in asked:
            judged = tuple(next(verdicts) for _ in one.responses)
            for pair in self._of(one, judged):
                yield one.prompt, pair

    def _of(self, asked: Asked, verdicts: tuple[Verdict, ...]) -> list[Pair]:
        account, group = self.account, _group(asked, self._encode)
        account.questions += 1
        account.responses += len(verdicts)
        if error := next((verdict.error for verdict in verdicts if verdict.error), None):
            account.masked.add(BadItem(name=f"question {asked.question.id}", reason=error))
            return []
        pairs = build_pairs(
            group,
            JudgedGroup(group_id=group.id, verdicts=verdicts),
            self._cfg.pairs,
            encode=self._encode,
            seed=self._cfg.seed,
            family_counts=account.families,
            left_out=account.left_out,
            checks=self._checks,
        )
        account.without += not pairs
        account.edited.update(pair.family for pair in pairs if _is_edited(pair))
        return pairs


def _group(asked: Asked, encode: Encode) -> Group:
    responses = ((response.text, response.finish_reason) for response in asked.responses)
    return group_of_texts(asked.question, responses, encode)


def _is_edited(pair: Pair) -> bool:
    return pair.chosen.rollout is None or pair.rejected.rollout is None


def _line(prompt: Any, pair: Pair) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "chosen": like(prompt, pair.chosen.text),
        "rejected": like(prompt, pair.rejected.text),
        "family": pair.family.value,
        "explanation": pair.explanation,
        "id": pair.id,
        "question_id": pair.question.id,
        "chosen_verdict": _summary(pair.chosen),
        "rejected_verdict": _summary(pair.rejected),
    }


def _summary(side: Response) -> dict[str, Any]:
    """response: its number among the question's responses, from 0; null for an edited one."""
    verdict = side.verdict
    faults = [check for check in verdict.checks if check.passed is False]
    return {
        "response": side.rollout,
        "correct": verdict.correct,
        "consistent": verdict.consistent,
        "clean": verdict.clean,
        "r_a": verdict["accuracy"].value,
        "think_tokens": verdict["length"].value,
        "repetition": verdict["repetition"].value,
        "faults": [f"{check.name}: {check.reason}" for check in faults],
    }
