"""A Flower Grid in this process whose one node is a gateway.

The gateway's own bridge answers each message, as it does under a SuperNode: it forwards it to the
service's socket and waits. A round takes as long as the phones need, so each message has a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from simulations.engines.in_process import InProcessGrid

__all__ = ["GatewayGrid"]

_THREADS = 8  # a round and its repetitions, and a description meanwhile


class GatewayGrid(InProcessGrid):
    """Hosts the gateway as node 1; as a context manager.

    Args:
        bridge: the gateway's ClientApp.
        node_config: the gateway's.
        run_config: Flower's run config.
    """

    def __init__(
        self, bridge: ClientApp, node_config: Mapping[str, str], run_config: Mapping[str, Any]
    ) -> None:
        super().__init__(bridge, 1, run_config)
        (context,) = self._contexts.values()
        context.node_config = dict(node_config)
        self._threads = ThreadPoolExecutor(_THREADS, "bridge")
        self._asked: dict[str, Future[Message]] = {}

    def __enter__(self) -> GatewayGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Begin to answer each message."""
        ids = []
        for message in messages:
            name = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = name
            self._asked[name] = self._threads.submit(self._answer, message)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that are there."""
        found = [name for name in message_ids if name in self._asked and self._asked[name].done()]
        return [self._asked.pop(name).result() for name in found]
