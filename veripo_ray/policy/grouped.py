"""The policy's log-probabilities of a group: one prompt, its features once, G responses behind it.

Groups lie one behind the other in a flat row, each as `[prompt | r1 | r2 | ...]`. Every response's
positions continue its prompt's, and its tokens see that prompt and their own past alone, so the
result equals that of separate sequences. GRPO, DPO (a pair is a group of two) and the reference use
this function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from veripo_ray.errors import DataError
from veripo_ray.policy.attention import Layout
from veripo_ray.policy.media import Media
from veripo_ray.policy.positions import mrope_positions
from veripo_ray.policy.qwen_vl import QwenVL


@dataclass(frozen=True, slots=True)
class Packed:
    """A group or a pair. prompt_ids: [P] int32, not empty, placeholders expanded; features: of its
    media, or frames for the policy's own tower; responses: [R_i] int32, each possibly empty, none
    containing a banned token."""

    prompt_ids: np.ndarray
    features: tuple[Media, ...]
    responses: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise ValueError("an empty prompt predicts no first token")

    @property
    def tokens(self) -> int:
        """Length of the packed row."""
        return len(self.prompt_ids) + sum(len(response) for response in self.responses)


@dataclass(frozen=True, slots=True)
class Scores:
    """Per group, per response: float32 [R_i] log-probabilities and, if asked for, entropies."""

    logprobs: list[list[Tensor]]
    entropy: list[list[Tensor]] | None


def response_logprobs(
    policy: QwenVL, packed: Sequence[Packed], *, temperature: float = 1.0, chunk: int = 1024
) -> list[list[Tensor]]:
    """float32 log-probability of every response token; differentiable.

    Under softmax(logits / temperature) with the banned tokens at -inf: the distribution that the
    rollout engine samples from. chunk: rows of logits held in float32 at a time.
    Raises DataError when a response holds a banned token or features do not fit their prompt.
    """
    return response_scores(policy, packed, temperature=temperature, chunk=chunk).logprobs


def response_scores(
    policy: QwenVL,
    packed: Sequence[Packed],
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    entropy: bool = False,
) -> Scores:
    """`response_logprobs`, with the entropy (nats, no gradient) of every step's distribution."""
    _refuse_banned(packed, policy.banned_token_ids)
    rows_NH, targets_N = _predicting_rows(policy, packed)
    head = _Head(policy, temperature, entropy)
    chunks = zip(rows_NH.split(chunk), targets_N.split(chunk), strict=True)
    pieces = [_recomputed(head, *each) for each in chunks]
    logprobs = _unpack(torch.cat([piece[0] for piece in pieces]), packed)
    if not entropy:
        return Scores(logprobs, None)
    return Scores(logprobs, _unpack(torch.cat([piece[1] for piece in pieces]), packed))


def micro_batches(packed: Sequence[Packed], token_budget: int) -> list[list[int]]:
    """Cut groups into micro-batches: lists of indices, in order, each filled to token_budget.

    A group longer than the budget goes alone.
    """
    batches: list[list[int]] = []
    used = 0
    for index, group in enumerate(packed):
        if not batches or used + group.tokens > token_budget:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += group.tokens
    return batches


def _refuse_banned(packed: Sequence[Packed], banned: Sequence[int]) -> None:
    ids = _joined([response for group in packed for response in group.responses])
    if (found := np.intersect1d(ids, banned)).size:
        raise DataError(
            f"a response holds special tokens that the policy never samples: {found.tolist()}",
            fix="encode responses as plain text, without media or chat tokens",
        )


def _predicting_rows(policy: QwenVL, packed: Sequence[Packed]) -> tuple[Tensor, Tensor]:
    """Hidden states that predict each response token, [N, H], and those tokens' ids, [N].

    The first token of every response is predicted by the last token of the prompt.
    """
    layout = Layout.of(
        [len(group.prompt_ids) for group in packed],
        [[len(response) for response in group.responses] for group in packed],
        policy.device,
    )
    ids_T = _joined([ids for group in packed for ids in (group.prompt_ids, *group.responses)])
    positions_3T = np.concatenate([_positions(policy, group) for group in packed], axis=1)
    features = [item for group in packed for item in group.features]
    hidden_TH = policy.hidden(
        policy.embed(_placed(ids_T, policy), features), _placed(positions_3T, policy), layout
    )
    offsets = np.cumsum([0, *(group.tokens for group in packed)])
    rows_N = _joined([start + _predictors(g) for start, g in zip(offsets, packed, strict=False)])
    targets_N = _joined([response for group in packed for response in group.responses])
    return hidden_TH[_placed(rows_N, policy)], _placed(targets_N, policy)


def _placed(array: np.ndarray, policy: QwenVL) -> Tensor:
    return torch.from_numpy(array).to(policy.device)


def _positions(policy: QwenVL, group: Packed) -> np.ndarray:
    prompt_3P, next_position = mrope_positions(group.prompt_ids, group.features, policy.spec)
    steps = [np.arange(len(r), dtype=np.int64) + next_position for r in group.responses]
    steps_R = _joined(steps)
    return np.concatenate([prompt_3P, np.broadcast_to(steps_R, (3, len(steps_R)))], axis=1)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Integer vectors end to end as int64; an empty one for none at all."""
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def _predictors(group: Packed) -> np.ndarray:
    """Place in the group's row of the token that predicts each response token."""
    prompt = len(group.prompt_ids)
    starts = prompt + np.cumsum([0, *map(len, group.responses)])[:-1]
    runs = [
        np.concatenate([[prompt - 1], np.arange(start, start + len(response) - 1)])
        for start, response in zip(starts, group.responses, strict=True)
        if len(response)
    ]
    return _joined(runs)


@dataclass(frozen=True, slots=True)
class _Head:
    """Logits of a chunk of rows, and from them the log-probabilities of its targets."""

    policy: QwenVL
    temperature: float
    entropy: bool

    def __call__(self, rows_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
        logits_NV = self.policy.logits(rows_NH).float()
        banned = torch.tensor(self.policy.banned_token_ids, device=logits_NV.device)
        logits_NV.index_fill_(1, banned.long(), float("-inf")).div_(self.temperature)
        logits_NV.sub_(logits_NV.detach().amax(-1, keepdim=True))  # a sum near 0 has finer digits
        normaliser_N = logits_NV.logsumexp(-1)
        logprobs_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - normaliser_N
        if not self.entropy:
            return (logprobs_N,)
        with torch.no_grad():
            probabilities_NV = (logits_NV - normaliser_N[:, None]).exp()
            surprise_NV = torch.where(probabilities_NV > 0, normaliser_N[:, None] - logits_NV, 0.0)
            return logprobs_N, (probabilities_NV * surprise_NV).sum(-1)


def _recomputed(head: _Head, rows_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
    """Run the head; its logits are recomputed in the backward pass rather than kept."""
    if not rows_NH.requires_grad:
        return head(rows_NH, targets_N)
    return checkpoint(head, rows_NH, targets_N, use_reentrant=False)


def _unpack(flat_N: Tensor, packed: Sequence[Packed]) -> list[list[Tensor]]:
    lengths = [len(response) for group in packed for response in group.responses]
    pieces: Iterator[Tensor] = iter(flat_N.split(lengths)) if lengths else iter(())
    return [[next(pieces) for _ in group.responses] for group in packed]
