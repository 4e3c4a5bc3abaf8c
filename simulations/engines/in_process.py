"""A Flower Grid in this process, which passes messages straight to the ClientApp."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["InProcessGrid"]

_CLIENT_APP_RAISED = 2  # Flower's error code for an exception in a ClientApp


class InProcessGrid(Grid):
    """Hosts ``num_nodes`` simulated nodes; a message is answered when it is pushed.

    Args:
        client_app: the ClientApp of every node.
        num_nodes: nodes 1, 2, ..., with partition-id 0, 1, ...
        run_config: Flower's run config, the same for all nodes.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, Any]
    ) -> None:
        # Flower's Message reads sender and run from here. No other code uses this internal name.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self._app = client_app
        self._ids = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node in range(1, num_nodes + 1)
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer each message now; an exception becomes an error reply, as in every engine."""
        ids = []
        for message in messages:
            name = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = name
            self._replies[name] = self._answer(message)
            ids.append(name)
        return ids

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as exc:
            error = Error(_CLIENT_APP_RAISED, f"{type(exc)}:<'{exc}'>")
            return Message(error, reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run: Any) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self) -> Any:
        raise NotImplementedError("an in-process grid has no Flower run")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("construct a flwr.app.Message instead")

    def get_nodes(self) -> Iterable[Any]:
        raise NotImplementedError("use get_node_ids")
