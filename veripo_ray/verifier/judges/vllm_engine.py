"""A text model in vLLM that says yes or no, in this process: the only file of the judges that
touches vLLM (0.32; the sampler has its own).

Of all tokens only the spellings of the two words are allowed, so the model cannot ramble, and one
step a prompt tells what it would have said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from veripo_ray import config
from veripo_ray.sampler.engine import CPU_BLOCK, set_environment
from veripo_ray.verifier.judges.ask import Answered
from veripo_ray.verifier.judges.vllm_prompts import Prompts

if TYPE_CHECKING:
    from vllm import RequestOutput

Encoded = list[int] | str  # a prompt's token ids [P], or why it cannot be asked
_STEP_TOKENS = 8192  # of prompts that one step of the engine computes at once


class YesNoEngine:
    """One at a time uses it. Whatever `score` raises, the engine is not to be used after it.

    Raises CheckpointError for a model without tokenizer, or whose tokenizer cannot say yes or no.
    """

    def __init__(self, cfg: config.VllmJudge) -> None:
        self._cfg, device = cfg, "cuda" if cfg.gpus else "cpu"
        set_environment(cfg, device)
        self._prompts = Prompts(cfg.model or "")
        from vllm import EngineArgs, SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        self._vllm = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(cfg.model),
                dtype=cfg.dtype,
                max_model_len=cfg.max_model_len,
                max_num_seqs=cfg.max_batch,
                max_num_batched_tokens=max(cfg.max_model_len, _STEP_TOKENS),
                gpu_memory_utilization=cfg.gpu_memory_utilization,
                enforce_eager=device == "cpu",
                block_size=CPU_BLOCK if device == "cpu" else None,
                enable_prefix_caching=True,  # all prompts begin with the same instructions
                logprobs_mode="processed_logprobs",  # of the allowed tokens alone
                generation_config="vllm",
                use_tqdm_on_load=False,
                disable_log_stats=True,
            )
        )
        words = [*self._prompts.yes_ids, *self._prompts.no_ids]
        self._settings = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            allowed_token_ids=words,
            logprobs=len(words),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # all requests share it
        )

    def score(self, prompts: Sequence[str]) -> list[Answered | str]:
        """What the model says to each prompt, in order, or why that prompt could not be asked."""
        return self.answer(self.encode(prompts))

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """In another thread than `answer`, if the caller likes: a model's step and the tokens of
        the next prompts take each other no time. One thread at a time."""
        try:
            return [self._fitting(ids) for ids in self._prompts.encode(prompts)]
        except (TypeError, ValueError) as error:
            if len(prompts) == 1:
                return [_cannot_be_put(error)]
            return [one for prompt in prompts for one in self.encode([prompt])]

    def answer(self, encoded: Sequence[Encoded]) -> list[Answered | str]:
        said: list[Answered | str] = [self._add(str(i), ids) for i, ids in enumerate(encoded)]
        while self._vllm.has_unfinished_requests():
            for output in self._vllm.step():
                if output.finished:
                    said[int(output.request_id)] = self._read(output)
        return said

    def _fitting(self, ids: list[int]) -> Encoded:
        if len(ids) < self._cfg.max_model_len:  # one token is the answer
            return ids
        return (
            f"the case takes {len(ids)} tokens, with the answer over judges.vllm."
            f"max_model_len = {self._cfg.max_model_len}"
        )

    def _add(self, id_: str, encoded: Encoded) -> str:
        """Queue a prompt; its error, or what stands in its place until it is answered."""
        from vllm.exceptions import VLLMError
        from vllm.inputs.engine import tokens_input

        if isinstance(encoded, str):
            return encoded
        try:
            self._vllm.add_request(id_, tokens_input(encoded), self._settings)
        except (VLLMError, TypeError, ValueError) as error:
            return _cannot_be_put(error)
        return "the model gave no answer"

    def _read(self, output: RequestOutput) -> Answered | str:
        logprobs = output.outputs[0].logprobs
        if not logprobs:
            return f"the model gave no answer: {output.outputs[0].finish_reason}"
        mass = {token: math.exp(found.logprob) for token, found in logprobs[0].items()}
        yes = sum(mass.get(token, 0.0) for token in self._prompts.yes_ids)
        no = sum(mass.get(token, 0.0) for token in self._prompts.no_ids)
        if not 0 < yes + no < math.inf:
            return "the model's probabilities of yes and no are no numbers"
        return Answered.likely(yes / (yes + no))


def _cannot_be_put(error: Exception) -> str:
    return f"the case cannot be put to the model: {type(error).__name__}: {error}"[:300]
