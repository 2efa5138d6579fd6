"""vLLM in this process, behind a few verbs: the sampler's only file that touches it (vLLM 0.32).

The engine is stepped from outside and gives back whole groups of token ids. It decodes no text
(once a group is cheaper than once a token), loads no vision tower unless that learns (media come in
as features), and takes nothing from the checkpoint's generation defaults.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veripo_ray import config
from veripo_ray.config import TransportName
from veripo_ray.errors import ConfigError, DataError
from veripo_ray.policy.media import Media, Spec
from veripo_ray.sampler.inputs import multi_modal_data
from veripo_ray.weights import to_tensor

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput, SamplingParams

GREEDY_BELOW = 0.01  # a temperature between 0 and this vLLM would raise to this, without an error
BAN = -100.0  # the strongest logit bias it takes; a probability of 1e-44 beside an equal logit
TRANSFERS = {"nccl": "nccl", "cuda_ipc": "ipc"}  # what vLLM calls its own ways of weights
CPU_BLOCK = 32  # tokens a block of the KV cache; with 128 shorter prompts would share nothing


@dataclass(frozen=True, slots=True)
class Completion:
    """token_ids: [R] int32 with the stop token; logprobs: [R] float32; reason: 'stop', 'length',
    or what vLLM calls its failure."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """All n completions of one request, and its prompt ids [P] int32 as vLLM expanded them."""

    id: str
    prompt_ids: np.ndarray
    completions: tuple[Completion, ...]


class Engine:
    """A running vLLM engine. Whatever `step` raises, the engine is not to be used after it.

    tower: whether it has the vision tower, and takes frames instead of features. sleeps: whether it
    shares its GPU, and `sleep` and `wake` are wanted. transport: makes it ready for vLLM's own
    weight transfer.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        spec: Spec,
        cfg: config.Rollout,
        *,
        device: str,
        seed: int,
        tower: bool = False,
        sleeps: bool = False,
        transport: TransportName = "object_store",
    ) -> None:
        set_environment(cfg, device)
        from vllm import EngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.llm_engine import LLMEngine

        self._can_sleep = sleeps and device != "cpu"
        self._spec, self._updating = spec, False
        backend = TRANSFERS.get(transport)
        most = cfg.max_model_len if tower else 0  # of frames in a prompt: no tower is loaded for 0
        self._vllm = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(checkpoint),
                dtype=cfg.dtype,
                seed=seed,
                max_model_len=cfg.max_model_len,
                max_num_seqs=cfg.max_num_seqs,
                max_num_batched_tokens=max(cfg.max_model_len, 8192),
                tensor_parallel_size=cfg.tensor_parallel,
                # Left to itself vLLM would look for bundles of its own in our placement group.
                distributed_executor_backend="mp" if cfg.tensor_parallel > 1 else "uni",
                gpu_memory_utilization=cfg.gpu_memory_utilization,
                enable_sleep_mode=self._can_sleep,
                enforce_eager=device == "cpu",
                block_size=CPU_BLOCK if device == "cpu" else None,
                enable_prefix_caching=True,  # the rollouts of a group share their prompt
                # With a seed a request, a CPU engine ends when it prefills a prompt in two pieces
                # ("CPU Generator does not use offset"); any prompt fits one step whole.
                enable_chunked_prefill=False if device == "cpu" else None,
                enable_mm_embeds=not tower,
                limit_mm_per_prompt={"image": most, "video": most},
                mm_processor_kwargs={"do_resize": False} if tower else None,
                worker_extension_cls="" if tower else _extension(spec),
                mm_processor_cache_gb=0,  # the object store has the media; keep no copies
                weight_transfer_config=backend and WeightTransferConfig(backend=backend),
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                generation_config="vllm",
                use_tqdm_on_load=False,
                disable_log_stats=True,
            )
        )
        self._vllm.collective_rpc(_share_positions)

    @property
    def unfinished(self) -> int:
        """Completions, over all requests, that are still to be finished."""
        return self._vllm.get_num_unfinished_requests()

    def settings(
        self, *, n: int, temperature: float, max_tokens: int, repetition_penalty: float = 1.0
    ) -> SamplingParams:
        """How requests are drawn, for `add`. A temperature below 0.01 is greedy.

        Raises ConfigError for what vLLM cannot do, several greedy completions included.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        try:
            return SamplingParams(
                n=n,
                temperature=0.0 if temperature < GREEDY_BELOW else temperature,
                max_tokens=max_tokens,
                repetition_penalty=repetition_penalty,
                stop_token_ids=list(self._spec.stop_ids),
                logit_bias=dict.fromkeys(self._spec.banned_ids, BAN),
                logprobs=0,  # of the sampled token and no other
                flat_logprobs=True,  # lists of floats instead of an object a token
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        except VLLMValidationError as error:
            raise ConfigError(
                f"vLLM cannot sample {n} rollouts at temperature {temperature:g}, max_tokens "
                f"{max_tokens}, repetition_penalty {repetition_penalty:g}: {error}",
                fix="change these in the recipe's rollout or evaluation section",
            ) from error

    def add(
        self,
        id_: str,
        prompt_ids: np.ndarray,
        media: Sequence[Media],
        settings: SamplingParams,
    ) -> None:
        """Queue a request. prompt_ids: [p] with one placeholder an item of `media`.

        Raises DataError, naming the request, when vLLM refuses it.
        """
        from vllm.exceptions import VLLMError
        from vllm.inputs.engine import tokens_input

        ids = prompt_ids.tolist()
        prompt: Any
        if media:
            data = multi_modal_data(media, self._spec)
            prompt = {"prompt_token_ids": ids, "multi_modal_data": data}
        else:
            prompt = tokens_input(ids)  # nothing to render
        try:
            self._vllm.add_request(id_, prompt, settings)
        except (VLLMError, ValueError) as error:
            raise DataError(f"request {id_!r}: vLLM refuses it: {error}") from error

    def step(self) -> list[Answer]:
        """Compute one token of every running completion; the requests that are done by it."""
        return [_answer(output) for output in self._vllm.step()]

    def abort(self, ids: Sequence[str]) -> None:
        """Forget these requests."""
        self._vllm.abort_request(list(ids))

    def seed(self, seed: int) -> None:
        """Seed the draws of what is added from now on."""
        self._vllm.collective_rpc(_seed, args=(seed,))

    def take(self, weights: Mapping[str, np.ndarray]) -> None:
        """Load these weights in place, each of the model's once until `finish_update`.

        After any error the weights may be old, new or mixed.
        """
        self._load(_take, dict(weights))

    def receive(self, told: Mapping[str, Any]) -> None:
        """As `take`, of weights that vLLM's weight transfer brings. told: its update info."""
        self._load(_receive, dict(told))

    def _load(self, load: Callable[..., None], what: dict[str, Any]) -> None:
        if not self._updating:
            self._vllm.collective_rpc(_begin_update)
            self._updating = True
        self._vllm.collective_rpc(load, args=(what,))

    def finish_update(self) -> None:
        """Put the loaded weights to use, and drop all that the old ones computed: keys and values,
        and the embeddings of media.

        Raises RuntimeError when something of the old weights is still in use.
        """
        self._updating = False
        self._vllm.collective_rpc(_finish_update)
        if not self._vllm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use and was not reset")
        self._vllm.reset_mm_cache()
        self._vllm.reset_encoder_cache()

    def abandon_update(self) -> None:
        """Forget an update that was not finished. vLLM collects the tensors of a layer until it has
        all of them: the next attempt would count some twice, and stop before the last ones."""
        if self._updating:
            self._updating = False
            self._vllm.collective_rpc(_finish_update)

    def connect(self, info: Mapping[str, Any]) -> None:
        """Meet the sender of vLLM's weight transfer; after another one, if need be."""
        self.disconnect()
        self._vllm.collective_rpc("init_weight_transfer_engine", args=(dict(info),))

    def disconnect(self) -> None:
        self._vllm.collective_rpc("shutdown_weight_transfer_engine")

    def sleep(self, level: int) -> None:
        """Give the GPU's memory back, keys and values with it. Level 1: weights wait in the
        machine's memory; 2: they are dropped, and must be replaced after waking.

        vLLM has no sleep on a CPU, where nothing is shared: there this does nothing.
        """
        if self._can_sleep:
            self._vllm.sleep(level=level)

    def wake(self, tags: Sequence[str]) -> None:
        """Take memory again for these: 'weights', 'kv_cache'."""
        if self._can_sleep:
            self._vllm.wake_up(tags=list(tags))

    def close(self) -> None:
        """End the engine and leave the process group that it made."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._vllm.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def set_environment(cfg: config.Rollout | config.VllmJudge, device: str) -> None:
    """What vLLM reads from the environment, to be set before it is imported. A value that is set
    already stays, except the size of the KV cache, which is `cfg.kv_cache_gb`.

    - VLLM_ENABLE_V1_MULTIPROCESSING=0: the engine in this process, which saves another gigabyte.
    - HF_HUB_OFFLINE=1: a checkpoint is a folder, so nothing is looked up.
    - On a CPU: TORCH_COMPILE_DISABLE=1, because the first answer takes half a minute otherwise,
      even with enforce_eager; no binding of threads to cores, which would put every worker on the
      same ones; OMP_WAIT_POLICY=PASSIVE, because two processes whose idle threads spin on shared
      cores slow each other down tenfold.
    """
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(cfg.kv_cache_gb)))
        settings |= {
            "TORCH_COMPILE_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _extension(spec: Spec) -> str:
    """What vLLM imports in every worker. It is imported here as well, because this process looks
    up the model's class before there are workers."""
    if not spec.deepstack_levels:
        return ""
    from veripo_ray.sampler.deepstack import Worker

    return f"{Worker.__module__}.{Worker.__name__}"


def seeded(settings: SamplingParams, seed: int, id_: str) -> SamplingParams:
    """These settings with a seed made of `seed` and a request's id: its i-th rollout draws from a
    generator of its own, seeded with the sum of that and i."""
    own = settings.clone()
    own.seed = zlib.crc32(f"{seed}/{id_}".encode())
    return own


def _seed(_worker: Any, seed: int) -> None:
    """Seed the generators that tokens are drawn from, in a worker of the engine's."""
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (on a GPU vLLM draws its own seeds from this one)


def _share_positions(worker: Any) -> None:
    """In a worker of the engine's: find a prompt's positions once a group. vLLM asks its model for
    them once a rollout, with the same ids and media each time."""
    model = worker.get_model()
    find = model.get_mrope_input_positions
    last: tuple[Sequence[int], Sequence[Any], Any] = (), (), None

    def positions(ids: Sequence[int], media: Sequence[Any]) -> Any:
        nonlocal last
        found = last[2]
        if found is None or ids is not last[0] or [*map(id, media)] != [*map(id, last[1])]:
            found = find(ids, media)
            last = ids, media, found
        return found

    model.get_mrope_input_positions = positions


def _begin_update(worker: Any) -> None:
    """In a worker of the engine's: make it ready to load weights layer by layer."""
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    with _config_of(worker):
        initialize_layerwise_reload(worker.get_model())


def _take(worker: Any, weights: Mapping[str, np.ndarray]) -> None:
    with _config_of(worker):
        worker.get_model().load_weights((name, to_tensor(a)) for name, a in weights.items())


def _receive(worker: Any, told: dict[str, Any]) -> None:
    with _config_of(worker):
        worker.weight_transfer_engine.update_weights(told)


def _finish_update(worker: Any) -> None:
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    with _config_of(worker):
        if transfer := worker.weight_transfer_engine:
            transfer.finish_weight_update()  # the same, and lets go of memory that is shared
        else:
            finalize_layerwise_reload(worker.get_model(), worker.model_config)
    _repack_head(worker.get_model())


def _config_of(worker: Any) -> AbstractContextManager[Any]:
    from vllm.config import set_current_vllm_config

    return set_current_vllm_config(worker.vllm_config)


def _repack_head(model: Any) -> None:
    """A head that is tied to the embeddings got no weight of its own, so vLLM did not prepare it
    again: on a CPU it would go on with its packed copy of the old ones."""
    head = model.get_language_model().lm_head
    head.quant_method.process_weights_after_loading(head)


def _answer(output: RequestOutput) -> Answer:
    prompt_ids = np.asarray(output.prompt_token_ids or (), dtype=np.int32)
    completions = tuple(_completion(completion) for completion in output.outputs)
    return Answer(output.request_id, prompt_ids, completions)


def _completion(output: CompletionOutput) -> Completion:
    return Completion(
        np.asarray(output.token_ids, dtype=np.int32),
        np.asarray(output.logprobs.logprobs if output.logprobs else (), dtype=np.float32),
        str(output.finish_reason),
    )
