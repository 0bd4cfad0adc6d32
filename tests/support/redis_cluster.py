"""A real Redis Cluster of the tests' own: three primaries, three replicas, gone with the run."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from tests.support.redis_server import PrivateRedis
from tests.support.server_process import ServerFailed, free_port, until

PRIMARIES = 3
#: Milliseconds until a server that is silent counts as gone. Small, so that tests of failing are short; large
#: enough that six servers on a busy machine are not taken for dead. Ours in operation: 5,000.
NODE_TIMEOUT = 1_500


class ClusterNode(PrivateRedis):
    """One server of the cluster."""

    NAME = "Redis"

    @property
    def client(self) -> Redis:
        """For what a test does to a server; close it after use."""
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=5, protocol=2)

    def ask(self, *words: object) -> object:
        """One command to this server and its answer."""
        with self.client as client:
            return client.execute_command(*words)

    def said(self, *words: object) -> str:
        """The same, the answer as text; empty when there is none."""
        try:
            answer = self.ask(*words)
        except (RedisError, OSError):
            return ""
        if isinstance(answer, dict):
            return "\n".join(f"{key}:{value}" for key, value in answer.items())
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    def follows(self, primary: str) -> bool:
        """Make it the replica of another, by its id; false as long as it has not heard of that."""
        return self.said("CLUSTER", "REPLICATE", primary) in ("OK", "True")

    def _configure(self) -> None:
        super()._configure()
        # The servers talk to each other at a port of their own, by default 10,000 higher.
        self.bus_port = free_port()
        lines = [
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-port {self.bus_port}",
            f"cluster-node-timeout {NODE_TIMEOUT}",
            # As in operation: a part that is gone does not take the rest with it.
            "cluster-require-full-coverage no",
            # A replica takes over however long ago it heard of its primary, and none changes sides by itself.
            "cluster-replica-validity-factor 0",
            "cluster-migration-barrier 9",
            "cluster-allow-replica-migration no",
            "repl-diskless-sync-delay 0",
            # Nobody waits for replicas when the run is over.
            "shutdown-timeout 0",
            "repl-ping-replica-period 1",
        ]
        with (self.folder / "redis.conf").open("a") as file:
            file.write("\n".join([*lines, ""]))


class PrivateCluster:
    """Six servers on ports of 127.0.0.1; a context manager. In `nodes` primaries first, then a replica of each."""

    def __init__(self) -> None:
        self.nodes = [ClusterNode() for _ in range(2 * PRIMARIES)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether every server runs."""
        return all(node.running for node in self.nodes)

    def start(self) -> None:
        """Start what does not run; the first time make the cluster. Waits until all agree that all is well.

        Skips the test, loudly, where there is no Redis.
        """
        made = all(node.port for node in self.nodes)
        try:
            for node in self.nodes:
                node.start()
            if not made:
                self._join()
            until(self._well, "the cluster is well")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop and remove everything; safe to call twice."""
        for node in self.nodes:
            node.close()

    def primary_of(self, key: str) -> ClusterNode:
        """The server that has this key now, as the servers say that run and do not hang."""
        slot = int(self._running()[0].said("CLUSTER", "KEYSLOT", key))
        for node in self._running():
            for line in node.said("CLUSTER", "NODES").splitlines():
                _, place, flags, *rest = line.split()
                if "master" not in flags or "fail" in flags.split(","):
                    continue
                for slots in rest[5:]:
                    first, _, last = slots.partition("-")
                    if first.isdigit() and int(first) <= slot <= int(last or first):
                        port = int(place.partition("@")[0].rpartition(":")[2])
                        return next(one for one in self.nodes if one.port == port)
        raise ServerFailed(f"no server has slot {slot}")

    def taken_over(self, key: str, before: ClusterNode) -> bool:
        """Whether another server than `before` has this key, and all that run know it and are well."""
        try:
            moved = self.primary_of(key) is not before
        except ServerFailed:
            return False
        return moved and all("cluster_state:ok" in node.said("CLUSTER", "INFO") for node in self._running())

    def _running(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.running and not node.hangs]

    def _join(self) -> None:
        primaries, replicas = self.nodes[:PRIMARIES], self.nodes[PRIMARIES:]
        for number, node in enumerate(primaries):
            first, last = 16_384 * number // PRIMARIES, 16_384 * (number + 1) // PRIMARIES - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            # Everybody meets everybody: gossip alone would take seconds.
            for other in self.nodes[:number]:
                node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        for primary, replica in zip(primaries, replicas, strict=True):
            until(
                functools.partial(replica.follows, primary.said("CLUSTER", "MYID")), "a replica follows its primary"
            )

    def _well(self) -> bool:
        """Every server runs, is content, and knows of three primaries, each with a replica that is up to date."""
        for node in self.nodes:
            info = node.said("CLUSTER", "INFO")
            if "cluster_state:ok" not in info or f"cluster_known_nodes:{2 * PRIMARIES}" not in info:
                return False
            role = node.said("INFO", "replication")
            if "role:slave" in role and "master_link_status:up" not in role:
                return False
            shown = node.ask("CLUSTER", "SLOTS")
            if not isinstance(shown, list) or any(len(entry) != 4 for entry in shown):
                return False
        return True
