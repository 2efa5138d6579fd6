"""Rollouts come from the distribution that the learner scores, whole groups at a time; a weight
update takes hold everywhere at once, or nothing is sampled any more.

One module, so that the engine and its process group end before other tests begin.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from veripo_ray.errors import CheckpointError, ConfigError, DataError, VeripoError
from veripo_ray.policy.positions import mrope_positions
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.sampler import State
from veripo_ray.weights import Snapshot, to_array

EXPLORE = {"n": 4, "temperature": 1.0, "max_tokens": 24}
ONE = {"n": 1, "temperature": 1.0, "max_tokens": 24}


@pytest.mark.parametrize(
    "names", [(), ("video",), ("slow",), ("image",), ("image", "video", "image"), ("video", "slow")]
)
def test_rollouts_and_learner_agree_on_every_token(sampler, media, request_of, names, gap):
    request = request_of("q", [media[name] for name in names], seed=1)
    (group,) = sampler.sample([request], **EXPLORE, seed=1)
    assert gap(group, request) <= 1e-5


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_log_probabilities_are_those_at_the_temperature(
    sampler, media, request_of, temperature, gap
):
    request = request_of("q", [media["video"]], seed=2)
    (group,) = sampler.sample([request], **EXPLORE | {"temperature": temperature}, seed=2)
    assert gap(group, request, temperature) <= 1e-5 / temperature  # logits are divided
    assert gap(group, request) > 1e-2


def test_rollouts_agree_with_transformers_own_forward(sampler, tiny_checkpoint, media, request_of):
    from transformers import Qwen2_5_VLForConditionalGeneration

    request = request_of("q", [media["video"]], seed=3)
    (group,) = sampler.sample([request], **EXPLORE, seed=3)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    banned = list(sampler.spec.banned_ids)
    for rollout in group.rollouts:
        ids = np.concatenate([group.prompt_ids, rollout.token_ids])
        positions_3T = torch.from_numpy(mrope_positions(ids, request.features, sampler.spec)[0])
        embeds_TH = model.get_input_embeddings()(torch.from_numpy(ids).long())
        embeds_TH[ids == sampler.spec.video_pad] = torch.from_numpy(request.features[0].values)
        with torch.no_grad():
            logits = model(inputs_embeds=embeds_TH[None], position_ids=positions_3T[:, None]).logits
        logits[..., banned] = -torch.inf
        scores = logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1).numpy()
        theirs = scores[np.arange(len(rollout.token_ids)), rollout.token_ids]
        assert np.abs(theirs - rollout.logprobs).max() <= 1e-5


def test_the_stop_token_is_an_id_but_no_text(sampler, request_of):
    groups = list(sampler.sample([request_of(str(i), seed=i) for i in range(12)], **EXPLORE))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        stopped = rollout.finish_reason == "stop"
        ids = rollout.token_ids.tolist()
        assert (ids[-1] in sampler.spec.stop_ids) == stopped
        assert stopped or len(ids) == EXPLORE["max_tokens"]
        assert len(rollout.logprobs) == len(ids)
        spoken = ids[:-1] if stopped else ids
        assert sampler.tokenizer(rollout.text, add_special_tokens=False)["input_ids"] == spoken
        assert "<|" not in rollout.text


def test_every_request_is_answered_once_and_none_waits_for_the_slowest(sampler, request_of):
    pulled = []

    def requests():
        for i in range(30):
            pulled.append(i)
            yield request_of(f"q{i}", seed=i)

    seen_by_then, ids = [], []
    for group in sampler.sample(requests(), **EXPLORE):
        ids.append(group.id)
        seen_by_then.append(len(pulled))
        assert len(group.rollouts) == EXPLORE["n"]
    assert sorted(ids) == sorted(f"q{i}" for i in range(30))
    assert seen_by_then[0] < 30  # the first group came before the last question was even read
    assert ids != sorted(ids, key=lambda id_: int(id_[1:]))  # as they finish, not as they came


def test_every_step_tells_which_groups_it_finished(sampler, request_of):
    requests = [request_of(str(i), seed=i) for i in range(12)]
    alone = [group.id for group in sampler.sample(requests, **EXPLORE, seed=5)]
    steps = list(sampler.steps(requests, **EXPLORE, seed=5))
    assert [group.id for finished in steps for group in finished] == alone
    assert steps.count([]) > len(alone)  # a token of everything, and mostly nothing ends with it
    assert sampler.stats.groups >= 24


def test_the_batch_stays_full_while_there_are_questions(sampler, request_of, monkeypatch):
    running = []
    step = sampler._engine.step
    monkeypatch.setattr(
        sampler._engine, "step", lambda: running.append(sampler._engine.unfinished) or step()
    )
    left = iter([request_of(str(i), seed=i) for i in range(20)])
    groups = sampler.sample(left, **EXPLORE)
    while next(groups, None) and next(left, None):
        assert min(running) >= sampler.cfg.max_num_seqs
    groups.close()


@pytest.mark.parametrize("n", [3, 12, 16, 24])  # places in the batch: 16
def test_a_big_group_leaves_no_place_of_the_batch_empty(sampler, request_of, monkeypatch, n):
    scheduler = sampler._engine._vllm.engine_core.engine_core.scheduler
    computed, left = [], iter([request_of(str(i), seed=i, words=4) for i in range(12)])
    schedule = scheduler.schedule
    monkeypatch.setattr(
        scheduler, "schedule", lambda *a: computed.append(schedule(*a)) or computed[-1]
    )
    groups = sampler.sample(left, **EXPLORE | {"n": n, "max_tokens": 8})
    while next(groups, None) and next(left, None):
        running = [len(step.num_scheduled_tokens) for step in computed]
        assert min(running) == sampler.cfg.max_num_seqs
    assert len(computed) > 8
    groups.close()


def test_the_rollouts_of_a_group_share_the_prompt(sampler, media, request_of, monkeypatch):
    """By vLLM's own books: the prompt with its video is computed once, and lies once in memory;
    a rollout's own are the tokens after the prompt's last whole block."""
    scheduler = sampler._engine._vllm.engine_core.engine_core.scheduler
    request, n = request_of("q", [media["video"], media["image"]], seed=8, words=140), 8
    prompt, block = len(sampler.check(request, 24)), 32
    assert prompt > 4 * block
    tokens, blocks = [], []
    schedule, pool = scheduler.schedule, scheduler.kv_cache_manager.block_pool

    def noted(*arguments):
        made = schedule(*arguments)
        tokens.append(made.total_num_scheduled_tokens)
        blocks.append(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
        return made

    monkeypatch.setattr(scheduler, "schedule", noted)
    (group,) = sampler.sample([request], **EXPLORE | {"n": n}, seed=8)
    decoded = sum(len(rollout.token_ids) - 1 for rollout in group.rollouts)  # the last is not read
    own = prompt - (prompt - 1) // block * block
    assert sum(tokens) == prompt + (n - 1) * own + decoded
    assert max(blocks) <= prompt // block + n * 2  # 24 more tokens cross one border at most


def test_a_request_with_its_own_seed_does_not_depend_on_its_company(sampler, media, request_of):
    requests = [request_of(str(i), [media["video"]], seed=i) for i in range(6)]

    def texts(asked, seed):
        groups = sampler.sample(asked, **EXPLORE, seed=seed, seed_each=True)
        return {group.id: [rollout.text for rollout in group.rollouts] for group in groups}

    first = texts(requests, 5)
    assert texts(requests[::-1], 5) == first
    assert texts(requests[2:3], 5) == {"2": first["2"]}
    assert texts(requests, 6) != first
    assert all(len(set(group)) > 1 for group in first.values())


def test_prompts_longer_than_a_step_has_room_for_may_have_seeds(sampler, request_of):
    """A CPU engine dies when a prompt with a seed is prefilled in pieces: ours never is."""
    requests = [request_of(str(i), seed=i, words=200) for i in range(90)]  # 18,000 tokens
    tiny = ONE | {"max_tokens": 2}
    assert len(list(sampler.sample(requests, **tiny, seed=1, seed_each=True))) == 90


def test_the_same_seed_gives_the_same_rollouts(sampler, media, request_of):
    def texts(seed):
        requests = [request_of(str(i), [media["video"]], seed=i) for i in range(6)]
        groups = sampler.sample(requests, **EXPLORE, seed=seed)
        return {group.id: [rollout.text for rollout in group.rollouts] for group in groups}

    first = texts(5)
    assert texts(5) == first
    assert texts(6) != first
    assert all(len(set(group)) > 1 for group in first.values())


def test_near_zero_temperature_is_greedy(sampler, request_of, gap):
    greedy = ONE | {"temperature": 1e-6}  # vLLM itself would make 0.01 of it
    requests = [request_of("a", seed=4), request_of("b", seed=4)]
    first, second = sampler.sample(requests, **greedy)
    assert np.array_equal(first.rollouts[0].token_ids, second.rollouts[0].token_ids)
    assert gap(first, requests[0]) <= 1e-5
    with pytest.raises(ConfigError, match=r"4 rollouts at temperature 1e-06.*greedy"):
        next(sampler.sample(requests, **EXPLORE | {"temperature": 1e-6}))


def test_a_repetition_penalty_changes_greedy_answers(sampler, request_of):
    greedy = {"n": 1, "temperature": 0.0, "max_tokens": 24}
    requests = [request_of(str(i), seed=i) for i in range(8)]

    def repeated(penalty):
        groups = sampler.sample(requests, **greedy, repetition_penalty=penalty)
        ids = [group.rollouts[0].token_ids.tolist() for group in groups]
        return sum(a == b for row in ids for a, b in pairwise(row))

    assert repeated(1.5) < repeated(1.0)


def test_a_request_that_cannot_be_answered_is_named_and_the_next_one_works(sampler, request_of):
    bad = request_of("too long", words=sampler.cfg.max_model_len)
    with pytest.raises(DataError, match=r"'too long'.*exceed rollout\.max_model_len = 256"):
        list(sampler.sample([request_of("fine"), bad], **ONE))
    with pytest.raises(DataError, match="two requests in flight have the id 'twin'"):
        list(sampler.sample([request_of("twin"), request_of("twin")], **ONE))
    assert sampler._engine.unfinished == 0
    assert [group.id for group in sampler.sample([request_of("fine")], **ONE)] == ["fine"]


def test_settings_that_vllm_refuses_are_an_error_of_the_recipe(sampler, request_of):
    with pytest.raises(ConfigError, match="cannot sample 1 rollouts at temperature 3"):
        next(sampler.sample([request_of("q")], **ONE | {"temperature": 3.0}))


def test_a_request_that_vllm_refuses_is_named(sampler):
    settings = sampler._engine.settings(**ONE)
    with pytest.raises(DataError, match="request 'q': vLLM refuses it"):
        sampler._engine.add("q", np.array([], np.int32), (), settings)


def test_a_consumer_that_leaves_early_leaves_nothing_behind(sampler, request_of):
    groups = sampler.sample([request_of(str(i), seed=i) for i in range(40)], **EXPLORE)
    next(groups)
    with pytest.raises(VeripoError, match="in the middle"):
        next(sampler.sample([request_of("q")], **ONE))
    groups.close()
    assert sampler._engine.unfinished == 0
    assert [group.id for group in sampler.sample([request_of("q")], **ONE)] == ["q"]


def test_a_failing_engine_names_the_questions_and_ends(sampler, request_of, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(sampler._engine, "step", fail)
        with pytest.raises(VeripoError, match=r"sampled a, b: RuntimeError\('out of memory'\)"):
            list(sampler.sample([request_of("a"), request_of("b")], **ONE))
    with pytest.raises(VeripoError, match="engine has ended"):
        next(sampler.sample([request_of("c")], **ONE))
    sampler._engine.abort(["a", "b"])
    sampler.state = State.READY  # the failure was not the engine's own; other tests go on with it


def test_an_aborted_rollout_is_an_error_that_names_it(sampler, request_of, monkeypatch):
    step = sampler._engine.step

    def aborted():
        answers = step()
        for answer in answers:
            for completion in answer.completions:
                object.__setattr__(completion, "reason", "abort")
        return answers

    with monkeypatch.context() as patched:
        patched.setattr(sampler._engine, "step", aborted)
        with pytest.raises(VeripoError, match="request 'q': vLLM ended it with 'abort'"):
            list(sampler.sample([request_of("q")], **ONE))


def test_stats_count_groups_and_tokens(sampler, request_of):
    before = sampler.stats.tokens, sampler.stats.groups, sampler.stats.seconds
    groups = list(sampler.sample([request_of(str(i), seed=i) for i in range(3)], **EXPLORE))
    tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    assert sampler.stats.tokens - before[0] == tokens
    assert sampler.stats.groups - before[1] == 3
    assert sampler.stats.seconds > before[2]


# --- weights


def snapshot(policy: QwenVL) -> Snapshot:
    return {name: to_array(weight) for name, weight in policy.trainable().items()}


def perturb(policy: QwenVL, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)


def test_an_update_reaches_prompts_whose_keys_and_features_were_cached(
    sampler, policy, media, request_of, gap
):
    """60 words and a video: longer than a block of the prefix cache, which must forget it."""
    request = request_of("q", [media["video"]], seed=1, words=60)
    for version in (1, 2):
        list(sampler.sample([request], **EXPLORE))
        perturb(policy, version)
        sampler.load_weights(version, snapshot(policy))
        (group,) = sampler.sample([request], **EXPLORE)
        assert gap(group, request) <= 1e-5
        assert {rollout.policy_version for rollout in group.rollouts} == {version}


def test_special_tokens_are_not_sampled_however_likely(sampler, policy, request_of, gap):
    banned, stops = list(sampler.spec.banned_ids), list(sampler.spec.stop_ids)
    with torch.no_grad():  # as likely as the likeliest word, one and all; and no end
        head_VH = policy.trainable()["lm_head.weight"]
        head_VH[banned] = 3 * head_VH[max(banned) + 1 :][: len(banned)]
        head_VH[stops] = 0
    sampler.load_weights(3, snapshot(policy))
    requests = [request_of(str(i), seed=i) for i in range(16)]
    sampled = {request.id: request for request in requests}
    for group in sampler.sample(requests, **EXPLORE):
        for rollout in group.rollouts:
            assert not np.isin(rollout.token_ids, banned).any()
        assert gap(group, sampled[group.id]) <= 1e-5


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda w: w.update(extra=np.zeros(1, np.float32)), "extra is unknown"),
        (
            lambda w: w.update({"model.norm.weight": np.zeros(3, np.float32)}),
            r"model.norm.weight is \(3,\) instead of \(64,\)",
        ),
    ],
)
def test_an_update_that_does_not_fit_changes_nothing(sampler, policy, request_of, damage, problem):
    sampler.load_weights(4, snapshot(policy))
    weights = snapshot(policy)
    perturb(policy, 0)
    weights |= {name: array + 1 for name, array in weights.items()}
    damage(weights)
    with pytest.raises(CheckpointError, match=problem):
        sampler.load_weights(5, weights)
    assert (sampler.state, sampler.version) == (State.READY, 4)
    assert next(sampler.sample([request_of("q")], **EXPLORE)).rollouts[0].policy_version == 4


def test_after_a_failed_update_nothing_is_sampled_until_one_succeeds(
    sampler, policy, media, request_of, gap
):
    request = request_of("q", [media["video"]], seed=5)
    sampler.load_weights(6, snapshot(policy))
    perturb(policy, 6)
    weights = snapshot(policy)
    name = "model.layers.2.self_attn.k_proj.weight"  # in the middle of a layer, after its q_proj
    with pytest.raises(TypeError, match="float64"):
        sampler.load_weights(7, weights | {name: weights[name].astype(np.float64)})
    assert (sampler.state, sampler.version) == (State.STALE, 6)
    with pytest.raises(VeripoError, match="update after version 6 failed"):
        next(sampler.sample([request], **EXPLORE))
    sampler.load_weights(8, weights)
    (group,) = sampler.sample([request], **EXPLORE)
    assert gap(group, request) <= 1e-5


def test_weights_are_not_exchanged_under_a_running_request(sampler, policy, request_of):
    sampler.load_weights(9, snapshot(policy))
    groups = sampler.sample([request_of(str(i), seed=i) for i in range(9)], **EXPLORE)
    next(groups)
    with pytest.raises(VeripoError, match="in the middle"):
        sampler.load_weights(10, snapshot(policy))
    groups.close()
    assert (sampler.state, sampler.version) == (State.READY, 9)


def test_nothing_is_sampled_or_loaded_into_what_sleeps(sampler, policy, request_of):
    """vLLM itself has no sleep on a CPU: these are the sampler's own rules."""
    request = request_of("q", seed=3)
    sampler.load_weights(10, snapshot(policy))
    (before,) = sampler.sample([request], seed=1, **EXPLORE)
    sampler.sleep(1)
    sampler.sleep(1)  # of no more effect
    with pytest.raises(VeripoError, match="kv_cache and weights are asleep"):
        next(sampler.sample([request], **EXPLORE))
    with pytest.raises(VeripoError, match="weights are asleep"):
        sampler.load_weights(11, snapshot(policy))
    sampler.wake(["weights"])
    with pytest.raises(VeripoError, match="kv_cache are asleep"):
        next(sampler.sample([request], **EXPLORE))
    sampler.wake(["kv_cache"])
    (after,) = sampler.sample([request], seed=1, **EXPLORE)
    assert [r.text for r in after.rollouts] == [r.text for r in before.rollouts]
    sampler.sleep(2)
    sampler.wake()
    with pytest.raises(VeripoError, match="still to come"):
        next(sampler.sample([request], **EXPLORE))
    sampler.load_weights(11, snapshot(policy))
    assert sampler.state is State.READY


def test_a_cache_that_cannot_be_reset_leaves_the_sampler_stale(sampler, policy, request_of):
    request = request_of("left over", words=40)
    sampler._engine.add(request.id, request.prompt_ids, (), sampler._engine.settings(**ONE))
    sampler._engine.step()  # its keys and values are in use now
    with pytest.raises(RuntimeError, match="not reset"):
        sampler.load_weights(11, snapshot(policy))
    assert sampler.state is State.STALE
    sampler._engine.abort([request.id])
    sampler.load_weights(12, snapshot(policy))
    assert sampler.state is State.READY


def test_weights_in_bfloat16_are_taken_too(sampler, policy, request_of, gap):
    weights = {n: to_array(w.bfloat16()) for n, w in policy.trainable().items()}
    sampler.load_weights(13, weights)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.copy_(weight.bfloat16())
    request = request_of("q", seed=7)
    (group,) = sampler.sample([request], **EXPLORE)
    assert gap(group, request) <= 1e-5
