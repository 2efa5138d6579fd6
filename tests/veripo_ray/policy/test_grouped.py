"""One prompt with its responses behind it is exactly as many separate sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from veripo_ray.errors import DataError
from veripo_ray.policy.grouped import (
    Packed,
    micro_batches,
    response_logprobs,
    response_scores,
)
from veripo_ray.policy.positions import mrope_positions
from veripo_ray.policy.qwen_vl import QwenVL

LOGPROB_GAP, GRADIENT_GAP = 1e-5, 1e-5


@pytest.fixture
def groups(group_of, video, slow_video, image) -> list[Packed]:
    """Video, image, both, two videos, text; uneven, single, empty and no responses."""
    return [
        group_of([video], [7, 1, 12, 3], seed=0),
        group_of([image], [5], seed=1),
        group_of([image, slow_video], [2, 0, 9], seed=2),
        group_of([video, slow_video], [4, 4], seed=3),
        group_of([], [6, 11], seed=4),
        group_of([video], [], seed=5),
    ]


def weighted(logprobs: list[list[torch.Tensor]], groups: list[Packed]) -> torch.Tensor:
    """A scalar with another weight on every token, so that no gradient cancels."""
    rng = np.random.default_rng(0)
    weights = [[rng.normal(size=len(r)) for r in group.responses] for group in groups]
    return sum(
        (part * torch.from_numpy(w).to(part.dtype)).sum()
        for parts, ws in zip(logprobs, weights, strict=True)
        for part, w in zip(parts, ws, strict=True)
    )


def gradients(policy: QwenVL, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.trainable().items()}


def separately(policy: QwenVL, groups: list[Packed]) -> list[list[torch.Tensor]]:
    """Each response alone behind its own copy of the prompt."""
    return [
        [
            response_logprobs(policy, [Packed(group.prompt_ids, group.features, (response,))])[0][0]
            for response in group.responses
        ]
        for group in groups
    ]


def test_a_group_equals_its_separate_sequences_in_values_and_gradients(policy, groups):
    together = response_logprobs(policy, groups)
    alone = separately(policy, groups)
    for group, parts, others in zip(groups, together, alone, strict=True):
        assert [len(part) for part in parts] == [len(response) for response in group.responses]
        for part, other in zip(parts, others, strict=True):
            torch.testing.assert_close(part, other, rtol=0, atol=LOGPROB_GAP)
    ours = gradients(policy, weighted(together, groups))
    theirs = gradients(policy, weighted(alone, groups))
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= GRADIENT_GAP * gradient.norm(), name


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_transformers_own_forward(policy, checkpoint, groups, temperature):
    """The whole transformers model on [prompt | response]: features scattered, deepstack levels
    added and positions computed by its own code (see `positions`), and its own logits."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        ours = response_logprobs(policy, groups, temperature=temperature)
        for group, parts in zip(groups, ours, strict=True):
            for response, part in zip(group.responses, parts, strict=True):
                logits = transformers_logits(model, policy, group, response)
                logits[:, list(policy.banned_token_ids)] = -100.0  # as the rollout engine biases
                expected = torch.log_softmax(logits / temperature, -1)
                chosen = expected.gather(1, torch.from_numpy(response).long()[:, None])[:, 0]
                torch.testing.assert_close(part, chosen, rtol=0, atol=LOGPROB_GAP)


def transformers_logits(model, policy, group: Packed, response: np.ndarray) -> torch.Tensor:
    """Logits that predict each token of the response, [R, V]."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    outputs = {}
    for modality in ("image", "video"):
        values = [torch.from_numpy(f.values) for f in group.features if f.modality == modality]
        if values:
            levels = [torch.cat(values)[:, i : i + 64] for i in range(0, values[0].shape[1], 64)]
            outputs[modality] = BaseModelOutputWithDeepstackFeatures(
                pooler_output=(levels[0],), deepstack_features=[(level,) for level in levels[1:]]
            )
    ids = torch.from_numpy(np.concatenate([group.prompt_ids, response])).long()
    where = positions(policy, group, response)
    logits = model(input_ids=ids[None], mm_encoder_outputs=outputs, **where).logits[0]
    start = len(group.prompt_ids)
    return logits[start - 1 : start - 1 + len(response)].clone()


def positions(policy, group: Packed, response: np.ndarray) -> dict[str, torch.Tensor]:
    """Where the tokens are, for transformers: it is left to itself where it does as Qwen3-VL was
    trained, and given our positions in Qwen2.5-VL, where it does not (see `policy.positions`)."""
    ids = np.concatenate([group.prompt_ids, response])
    if policy.spec.family == "qwen3_vl":
        kinds = {1: policy.spec.image_pad, 2: policy.spec.video_pad}
        given = {"mm_token_type_ids": sum(kind * (ids == pad) for kind, pad in kinds.items())[None]}
        for modality in ("image", "video"):
            grids = [item.grid_thw for item in group.features if item.modality == modality]
            given |= {f"{modality}_grid_thw": np.array(grids)} if grids else {}
        return {name: torch.from_numpy(array) for name, array in given.items()}
    prompt_3P, after = mrope_positions(group.prompt_ids, group.features, policy.spec)
    steps = np.broadcast_to(np.arange(len(response)) + after, (3, len(response)))
    both = np.concatenate([prompt_3P, steps], axis=1)
    return {"position_ids": torch.from_numpy(both)[:, None]}


def test_large_logits_cost_no_digits(policy, groups):
    kept: list[torch.Tensor] = []
    policy.model.lm_head.register_forward_hook(lambda *call: kept.append(call[-1].double()))
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(100)
        ours = torch.cat([part for parts in response_logprobs(policy, groups) for part in parts])
    logits_NV = kept[0].index_fill(1, torch.tensor(policy.banned_token_ids), -torch.inf)
    ids = [r for group in groups for r in group.responses]
    ids_N1 = torch.from_numpy(np.concatenate(ids)).long()[:, None]
    exact = logits_NV.log_softmax(-1).gather(1, ids_N1)[:, 0]
    assert logits_NV.amax() > 256  # whose last digit is 3e-5
    assert ((ours - exact).abs() <= 1.2e-7 * (1 - exact)).all()


def test_chunks_change_nothing(policy, groups):
    whole = response_logprobs(policy, groups)
    chunked = response_logprobs(policy, groups, chunk=5)
    for one, other in zip(whole, chunked, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    ours = gradients(policy, weighted(chunked, groups))
    theirs = gradients(policy, weighted(whole, groups))
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_the_backward_pass_keeps_no_logits(policy, groups):
    kept: list[torch.Size] = []

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        response_logprobs(policy, groups)
    vocabulary = policy.spec.vocab_size
    assert kept
    assert not [shape for shape in kept if len(shape) == 2 and shape[1] == vocabulary]


class Widest(TorchDispatchMode):
    """Rows of the tallest tensor that has a number for every word of the vocabulary."""

    def __init__(self, head: torch.Tensor) -> None:
        super().__init__()
        self.shapes = {head.shape, head.mT.shape}  # the weights, and their gradient
        self.vocabulary = head.shape[0]
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            shape = getattr(tensor, "shape", ())
            if self.vocabulary in shape and shape not in self.shapes:
                self.rows = max(self.rows, shape.numel() // self.vocabulary)
        return result


@pytest.mark.parametrize("chunk", [5, 15])
def test_no_pass_ever_holds_logits_of_more_tokens_than_a_chunk(policy, groups, chunk):
    assert sum(len(response) for group in groups for response in group.responses) > 4 * chunk
    with Widest(policy.model.lm_head.weight) as widest:
        scores = response_scores(policy, groups, chunk=chunk, entropy=True)
        weighted(scores.logprobs, groups).backward()
    assert widest.rows == chunk


def test_what_stands_beside_a_group_in_the_batch_does_not_matter(policy, groups):
    together = response_logprobs(policy, groups)
    for group, parts in zip(groups, together, strict=True):
        for part, other in zip(parts, response_logprobs(policy, [group])[0], strict=True):
            torch.testing.assert_close(part, other, rtol=0, atol=LOGPROB_GAP)


def test_probabilities_of_all_tokens_that_may_be_sampled_sum_to_one(policy, group_of, video, spec):
    allowed = [i for i in range(spec.vocab_size) if i not in spec.banned_ids]
    group = group_of([video], [])
    each = Packed(group.prompt_ids, group.features, tuple(np.array([i], np.int32) for i in allowed))
    with torch.no_grad():
        logprobs = torch.cat(response_logprobs(policy, [each], temperature=0.8)[0])
        scores = response_scores(policy, [each], temperature=0.8, entropy=True)
    assert abs(logprobs.exp().sum().item() - 1) < 1e-5
    entropy = -(logprobs.exp() * logprobs).sum()
    for value in scores.entropy[0]:
        torch.testing.assert_close(value[0], entropy, rtol=1e-4, atol=1e-5)


def test_groups_without_any_response_token(policy, group_of, video):
    scores = response_scores(policy, [group_of([video], [0, 0]), group_of([], [])], entropy=True)
    assert [[len(part) for part in parts] for parts in scores.logprobs] == [[0, 0], []]
    assert [[len(part) for part in parts] for parts in scores.entropy] == [[0, 0], []]


def test_a_response_with_a_special_token_is_refused(policy, group_of, video, spec):
    group = group_of([video], [])
    bad = Packed(group.prompt_ids, group.features, (np.array([20, spec.video_pad], np.int32),))
    with pytest.raises(DataError, match=str(spec.video_pad)):
        response_logprobs(policy, [bad])


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Packed(np.zeros(0, np.int32), (), ())


def test_half_precision_stays_near(checkpoint, policy, groups):
    half = QwenVL.load(checkpoint, dtype=torch.bfloat16, tower=False)
    with torch.no_grad():
        exact, near = response_logprobs(policy, groups), response_logprobs(half, groups)
    assert near[0][0].dtype == torch.float32
    gaps = [
        (a - b).abs()
        for one, other in zip(exact, near, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    assert torch.cat(gaps).mean() < 0.1


@given(st.lists(st.integers(2, 90), max_size=12), st.integers(10, 200))
def test_micro_batches_keep_the_order_and_the_budget(lengths, budget):
    packed = [Packed(np.zeros(n - 1, np.int32), (), (np.zeros(1, np.int32),)) for n in lengths]
    batches = micro_batches(packed, budget)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
