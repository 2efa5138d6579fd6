"""A learner rank as a Ray actor: it fetches the features it trains on and hosts a `Learner`."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.metrics import Worker, measured
from actors.waiting import Failures
from veripo_ray import codec, config
from veripo_ray.learner import Learner, rendezvous
from veripo_ray.learner.examples import Example, ToScore, share
from veripo_ray.learner.rendezvous import Address
from veripo_ray.policy import lora
from veripo_ray.policy.grouped import Packed
from veripo_ray.policy.media import Media
from veripo_ray.records import Group, Pair
from veripo_ray.reference import with_reference
from veripo_ray.storage import Store, here
from veripo_ray.weights import Manifest, Snapshot

if TYPE_CHECKING:
    from actors.transports.sending import Sender


class LearnerRank:
    """One of `world_size` ranks. Rank 0 tells its `address`, then all are told to `join`; after
    that every call must reach all ranks, in the same order.

    Features arrive as references, by id of group or pair, and examples as one reference in a list:
    Ray resolves neither, so a rank fetches its own share only, without a copy.
    """

    def __init__(
        self,
        checkpoint: str,
        cfg: config.Learner,
        *,
        device: str = "cpu",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        temperature: float = 1.0,
        max_tokens: int | None = None,
    ) -> None:
        self.checkpoint, self.cfg = checkpoint, cfg
        self.rank, self.world_size = rank, world_size
        self.worker = Worker(f"learner {rank}")
        self.device, self.seed = device, seed
        self.temperature, self.max_tokens = temperature, max_tokens
        self._store: Any = None
        self._learner: Learner | None = None
        self._sender: Sender | None = None

    def ping(self) -> int:
        """Answers once the actor is up."""
        return self.rank

    def address(self) -> Address:
        """Open the meeting place of the ranks. Called on rank 0 only."""
        self._store, port = rendezvous.host()
        return ray.util.get_node_ip_address(), port

    def join(self, address: Address, timeout_s: float = 120.0) -> None:
        """Meet the other ranks and load the model. Raises ResourceError naming missing ranks."""
        here = rendezvous.interface_of(ray.util.get_node_ip_address())
        if here:  # where the other nodes reach this one
            os.environ.setdefault("GLOO_SOCKET_IFNAME", here)
        if self._store is None:
            self._store = rendezvous.connect(address, timeout_s)
        self._learner = Learner(
            self.checkpoint,
            self.cfg,
            device=self.device,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            store=self._store,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            join_timeout_s=timeout_s,
        )

    @measured
    def grpo_step(
        self,
        groups: Sequence[ray.ObjectRef],
        features: Mapping[str, ray.ObjectRef],
        cfg: config.Grpo,
        max_gap: float | None = None,
    ) -> dict[str, float]:
        """See `Learner.grpo_step`; groups: one reference to the list of all TrainGroups."""
        rows = ray.get(groups[0])
        return self.learner.grpo_step(rows, self._own(rows, features), cfg, max_gap=max_gap)

    @measured
    def dpo_step(
        self,
        pairs: Sequence[ray.ObjectRef],
        features: Mapping[str, ray.ObjectRef],
        cfg: config.Dpo,
    ) -> dict[str, float]:
        """See `Learner.dpo_step`; pairs: one reference to the list of all TrainPairs."""
        rows = ray.get(pairs[0])
        return self.learner.dpo_step(rows, self._own(rows, features), cfg)

    @measured
    def score(
        self, groups: Sequence[ray.ObjectRef], features: Mapping[str, ray.ObjectRef]
    ) -> dict[str, list[np.ndarray]]:
        """See `Learner.score`: this rank's share; groups as for `grpo_step`."""
        rows = ray.get(groups[0])
        return self.learner.score(rows, self._own(rows, features))

    @measured
    def logprobs(
        self, groups: Sequence[Group], features: Mapping[str, ray.ObjectRef]
    ) -> dict[str, list[np.ndarray]]:
        """Log-probabilities of every rollout under the present weights, by group id."""
        packed = [pack(group, ray.get(features[group.id])) for group in groups]
        return named(groups, self.learner.logprobs(packed))

    # --- with LoRA the ranks are the reference, too: each takes its share

    def keep_reference(self) -> None:
        """See `Learner.keep_reference`."""
        self.learner.keep_reference()

    def load_reference(self, folder: str) -> None:
        """The policy of the learner's checkpoint, a folder or a URI, is the reference."""
        self.learner.load_reference(Path(here(f"{folder}/{lora.FOLDER}")).parent)

    @measured
    def attach(self, shard: np.ndarray, features: Mapping[str, ray.ObjectRef]) -> np.ndarray:
        """As `Reference.attach`; gives back this rank's share of the shard."""
        pairs = codec.unpack_many(shard.data, Pair)
        scores = self._by_reference(pairs, features)
        scored = [with_reference(p, scores[p.id]) for p in pairs if p.id in scores]
        return codec.to_array(codec.pack_many(scored))

    @measured
    def reference_logprobs(
        self, groups: Sequence[Group], features: Mapping[str, ray.ObjectRef]
    ) -> dict[str, list[np.ndarray]]:
        """As `Reference.reference_logprobs`, of this rank's share of the groups."""
        return self._by_reference(groups, features)

    def _by_reference(
        self, items: Sequence[Group | Pair], features: Mapping[str, ray.ObjectRef]
    ) -> dict[str, list[np.ndarray]]:
        rows = [ToScore.of(item) for item in items]
        own = self._own(rows, features)
        silent = {row.id: list(row.responses) for row in rows if row.id in own}  # no token to score
        return silent | self.learner.score_by_reference(rows, own)

    @measured
    def manifest(self, version: int) -> Manifest:
        """Call the present weights `version` from now on, and tell what they are."""
        self.learner.publish(version)
        return self.learner.manifest()

    def weights(self, bucket_bytes: int) -> Iterator[Snapshot]:
        """See `Learner.buckets`. Call with num_returns="streaming"."""
        yield from self.learner.buckets(bucket_bytes)

    def meeting_place(self) -> Address:
        """This node and a port that is free on it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def open_sender(self, transport: config.TransportName, cfg: config.Weights, *how: Any) -> None:
        """Get ready to `send` by a transport of vLLM's; how: see `actors.transports.sending`."""
        from actors.transports.sending import Sender  # and vLLM with it

        if self._sender is not None:
            self._sender.close()
        self._sender = getattr(Sender, transport)(self.learner, cfg, *how)

    def send(self) -> Failures:
        """The present weights, by the sender that was opened. All ranks have to."""
        if self._sender is None:
            raise RuntimeError("no sender was opened")
        return self._sender.send()

    def sees(self, folder: str) -> bool:
        """Whether this node has the folder: whether the disk is shared, where another made it."""
        return Path(folder).is_dir()

    @measured
    def save(self, folder: str) -> str:
        """Write this rank's part into a folder of its node; returns the node."""
        self.learner.save(folder)
        return ray.get_runtime_context().get_node_id()

    def upload(self, folder: str, uri: str, *, keep: bool) -> None:
        """Bring what the ranks of this node have saved to where the run is kept."""
        Store(uri).put_tree(Path(folder), "")
        if not keep:
            shutil.rmtree(folder)

    def load(self, folder: str) -> int:
        """Continue from a checkpoint, a folder or a URI; returns the version of its weights."""
        self.learner.load(Path(here(f"{folder}/state")).parent)
        return self.learner.version

    @property
    def learner(self) -> Learner:
        if self._learner is None:
            raise RuntimeError("the learner rank has not joined the others yet")
        return self._learner

    def _own(
        self, examples: Sequence[Example], features: Mapping[str, ray.ObjectRef]
    ) -> dict[str, tuple[Media, ...]]:
        ids = [examples[i].id for i in share(len(examples), self.rank, self.world_size)]
        return dict(zip(ids, ray.get([features[name] for name in ids]), strict=True))


def pack(group: Group, features: tuple[Media, ...]) -> Packed:
    """A group's prompt, features and rollouts as the policy scores them."""
    rollouts = tuple(rollout.token_ids for rollout in group.rollouts)
    return Packed(group.prompt_ids, features, rollouts)


def named(
    groups: Sequence[Group], scores: Sequence[list[np.ndarray]]
) -> dict[str, list[np.ndarray]]:
    return {group.id: score for group, score in zip(groups, scores, strict=True)}
