"""TRL and OpenRLHF read the pairs that `veripo pairs` writes, whoever judged them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from veripo_ray.compat import stand_in_flash_attn
from veripo_ray.offline_pairs import OfflinePairs, build_file

THINK = "<think> two cats have four legs and four legs so {} </think> "
RIGHT = THINK.format(8) + "<answer> 8 </answer>"
WRONG = THINK.format(2) + "<answer> 2 </answer>"
CHAT = [{"role": "user", "content": "legs ?"}]
ROW = {"kind": "numeric", "gold": "8", "responses": [RIGHT, WRONG]}


def pairs(folder: Path, prompt: object, **settings: object) -> list[dict]:
    file, out = folder / "rollouts.jsonl", io.StringIO()
    file.write_text(json.dumps(ROW | {"prompt": prompt}))
    build_file(file, out, OfflinePairs.model_validate(settings))
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_running_verifier_judges_as_the_judge_here(tmp_path, serve_verifier):
    here = pairs(tmp_path, CHAT)
    assert here
    assert pairs(tmp_path, CHAT, url=serve_verifier()) == here


def test_edited_sides_are_checked_as_the_running_verifier_checks(tmp_path, serve_verifier):
    url = serve_verifier(checks__max_think_tokens=12)
    families = {pair["family"] for pair in pairs(tmp_path, CHAT, url=url)}
    assert families == {"accuracy", "consistency"}  # an edit that reflects would be too long


@pytest.mark.parametrize(("prompt", "chat"), [(CHAT, True), ("legs ?", False)])
def test_trl_takes_a_pair_for_what_it_is(tmp_path, prompt, chat):
    data_utils = pytest.importorskip("trl.data_utils")
    first, *_ = pairs(tmp_path, prompt)
    assert data_utils.is_conversational(first) is chat
    assert data_utils.maybe_extract_prompt(first) == first


def test_openrlhf_reads_prompt_and_both_sides(tmp_path):
    stand_in_flash_attn()
    dataset = pytest.importorskip("openrlhf.datasets.reward_dataset")
    first, *_ = pairs(tmp_path, CHAT)

    def template(messages: list[dict], **_: object) -> str:
        return "".join(f"[{one['role']}] {one['content']}" for one in messages)

    keys = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected"}
    read = dataset.preprocess_data(first, None, **keys, apply_chat_template=template, is_dpo=True)
    prompt, chosen, rejected = read[:3]
    assert prompt == "[user] legs ?"
    assert (chosen, rejected) == (f"[assistant] {RIGHT}", f"[assistant] {WRONG}")
