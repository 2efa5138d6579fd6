"""What the verifier's endpoint is compared with: a plain FastAPI server of one process.

It has the shape of OpenRLHF's `serve_rm`: `POST /get_reward`, whose handler works the queries off
one by one. The checks and the judges are ours, the same code with the same settings.

    python benchmarks/_plain_verifier.py PORT [CHECKPOINT of the vllm judge]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import uvicorn
from _judge_model import settings
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from veripo_ray.verifier.judges import Answered, Judge, Rules, build
from veripo_ray.verifier.verify import Item, averify


def main(port: int, checkpoint: str | None) -> None:
    judge = _vllm(checkpoint) if checkpoint else Rules()
    api = FastAPI()

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.post("/get_reward")
    async def get_reward(request: Request) -> JSONResponse:
        data = await request.json()
        rows = zip(data["query"], data["prompts"], data["labels"], strict=True)
        verdicts = []
        for query, question, label in rows:
            item = Item(response=query, question=question, **json.loads(label))
            verdicts += await averify([item], judge)
        rewards = [float(verdict.correct is True) for verdict in verdicts]
        told = [verdict.model_dump(mode="json") for verdict in verdicts]
        return JSONResponse({"rewards": rewards, "scores": rewards, "extra_logs": told})

    uvicorn.run(api, host="127.0.0.1", port=port, log_level="warning")


def _vllm(checkpoint: str) -> Judge:
    """The engine in this process, asked for one case at a time, as the handler does."""
    from veripo_ray.verifier.judges.vllm_engine import YesNoEngine

    judges = settings(checkpoint)
    engine = YesNoEngine(judges.vllm)

    async def ask(prompts: Sequence[str]) -> list[Answered | str]:
        return engine.score(prompts)

    return build("vllm", judges, ask)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
