"""What vLLM's own weight transfer wants of us, checked against the vLLM that is installed: the rest
of these transports needs GPUs, see test_syncing.py."""

from __future__ import annotations

import inspect
from dataclasses import asdict

import pytest
import torch

from actors.transports import CudaIpc, Nccl, ObjectStore, direct, nccl
from veripo_ray import config
from veripo_ray.learner import Learner
from veripo_ray.weights import Manifest

MANIFEST = Manifest(3, "bfloat16", {"a": (2, 3), "b": (5,)})
CFG = config.Weights(bucket_mb=0.1)


def test_every_name_has_its_transport():
    made = [direct(name, CFG, 1) for name in ("object_store", "nccl", "cuda_ipc")]
    assert [type(transport) for transport in made] == [ObjectStore, Nccl, CudaIpc]


def test_a_rollout_worker_is_told_of_a_broadcast_what_vllm_s_trainer_would_tell_it():
    from vllm.distributed.weight_transfer.nccl_common import (
        NCCLWeightTransferInitInfo,
        worker_init_payload,
    )
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

    told = nccl.init_info(("10.0.0.1", 4711), rank_offset=3, world_size=5, bucket_bytes=99)
    assert worker_init_payload(NCCLWeightTransferInitInfo(**told)) == told
    update = nccl.update_info(MANIFEST)
    assert asdict(NCCLWeightTransferUpdateInfo(**update)) == update
    assert [getattr(torch, name) for name in update["dtype_names"]] == [torch.bfloat16] * 2


def test_vllm_s_trainer_engines_take_what_a_sender_gives_them():
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.ipc_engine import (
        IPCTrainerInitInfo,
        IPCTrainerWeightTransferEngine,
    )
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLTrainerWeightTransferEngine,
    )

    from actors.transports.sending import Silent, Telling

    assert isinstance(Silent(), VLLMWeightSyncClient)
    assert isinstance(Telling({}, CFG), VLLMWeightSyncClient)
    info = NCCLTrainerInitInfo(
        "10.0.0.1", 4711, 5, packed_buffer_size_bytes=99, packed_num_buffers=2, rank=1
    )
    assert (info.master_port, info.world_size, info.packed) == (4711, 5, True)
    assert IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=99, rank=0).is_sender
    for engine in (NCCLTrainerWeightTransferEngine, IPCTrainerWeightTransferEngine):
        assert {"client", "source"} <= inspect.signature(engine.trainer_init).parameters.keys()
        assert [*inspect.signature(engine.send_weights).parameters] == ["self"]


def test_vllm_s_workers_have_what_the_engine_calls_in_them():
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.v1.worker.gpu_worker import Worker

    for name in ("init_weight_transfer_engine", "shutdown_weight_transfer_engine", "get_model"):
        assert callable(getattr(Worker, name))
    for name in ("update_weights", "finish_weight_update", "shutdown"):
        assert callable(getattr(WeightTransferEngine, name))
    source = inspect.getsource(Worker.__init__)
    assert "self.weight_transfer_engine" in source


@pytest.mark.parametrize("family", ["tiny_checkpoint", "qwen3_checkpoint"])
def test_a_learner_s_weights_come_through_vllm_s_packing_to_the_bit(family, request):
    """Its packing alone runs without a GPU. Metadata and weights must agree one by one, else the
    two sides of a broadcast would cut it differently."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine
    from vllm.distributed.weight_transfer.packed_tensor import pack_tensors, unpack_tensor

    from actors.transports.sending import LearnerSource

    learner = Learner(request.getfixturevalue(family), config.Learner(dtype="float32"))
    source = LearnerSource(learner)
    pairs = NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata())
    arrived: dict[str, torch.Tensor] = {}
    while chunk := pack_tensors(pairs, lambda item: item[1], buffer_size_bytes=100_000):
        sizes = chunk.packed_tensor, chunk.names, chunk.shapes, chunk.dtypes, chunk.tensor_sizes
        arrived |= dict(unpack_tensor(*sizes))
    expected = dict(learner.each_weight())
    assert [*arrived] == [*expected]
    for name, weight in expected.items():
        assert torch.equal(arrived[name], weight), name
