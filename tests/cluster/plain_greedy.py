"""Greedy tokens of a checkpoint by plain transformers or plain vLLM: `LIBRARY CHECKPOINT OUT`.

Run as a script, without this project: whoever downloads a checkpoint has no more than this. The
prompts are text: with a video, transformers 5.19 places the text behind it otherwise than the
model was trained (see veripo_ray.policy.positions).
"""

import json
import os
import sys
from pathlib import Path

QUESTIONS = ("count red ?", "moves ?", "last ? A green B red C blue D yellow", "after blue ?")
NEW_TOKENS = 24


def prompts(checkpoint: str) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in chats
    ]


def by_transformers(checkpoint: str) -> list[list[int]]:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    rows = []
    for ids in prompts(checkpoint):
        answer = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
        rows.append(answer[0, len(ids) :].tolist())
    return rows


def by_vllm(checkpoint: str) -> list[list[int]]:
    from vllm import LLM, SamplingParams

    llm = LLM(checkpoint, dtype="float32", enforce_eager=True, max_model_len=256)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts(checkpoint)], params)
    return [list(answer.outputs[0].token_ids) for answer in answers]


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    library, folder, out = sys.argv[1:]
    rows = by_vllm(folder) if library == "vllm" else by_transformers(folder)
    Path(out).write_text(json.dumps(rows))
