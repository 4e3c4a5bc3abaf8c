"""All that a device computes, in a process of its own; see test_packaging.

Arguments: the device's folder, a backbone's bytes, its fingerprint, an exported model.
"""

import json
import sys
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.common.config import parse_config_args

from client.app import app
from common.datasets.folder import load_folder
from common.messages import (
    BackboneReply,
    BackboneRequest,
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from common.types import ClientPlan, Head, LocalTraining
from server.export.card import read_card
from server.export.predict import measure
from simulations.deploy.launch import device_command
from simulations.engines.in_process import InProcessGrid


def main(device: Path, backbone: Path, fingerprint: str, model: Path) -> dict[str, object]:
    grid = InProcessGrid(app, 1, {})
    (context,) = grid._contexts.values()
    context.node_config = parse_config_args(device_command(device, device)[-1:])

    def ask(kind: str, content: RecordDict) -> RecordDict:
        message = Message(content=content, dst_node_id=1, message_type=kind)
        (reply,) = grid.send_and_receive([message])
        if reply.has_error():
            raise SystemExit(reply.error.reason)
        return reply.content

    classes = tuple(sorted(path.name for path in (device / "images").iterdir()))
    request = DescribeRequest("run", classes, 0.2, 0)
    clients = DescribeReply.read(ask("query.describe", request.write())).clients
    brought = BackboneRequest(fingerprint, backbone.read_bytes())
    present = BackboneReply.read(ask("query.backbone", brought.write())).present
    head, training = Head.zeros(len(classes), 1280), LocalTraining(0.05)
    order = TrainRequest(head, ClientPlan(), training, clients, 1, "run", 0, fingerprint, "sum")
    update = TrainReply.read(ask("train", order.write()))
    question = EvaluateRequest(head, clients, fingerprint, "run")
    own = EvaluateReply.read(ask("evaluate", question.write()))
    return {
        "present": present,
        "clients": len(update.clients),
        "reasons": [rejection.reason for rejection in update.rejected],
        "moved": any(any(row) for row in update.payloads["delta"]),
        "own": sum(client.num_examples for client in own.evaluations),
        "measured": measured(model, device / "images"),
    }


def measured(model: Path, images: Path) -> float:
    """How right the model is on all of a device's images."""
    dataset = load_folder(images, classes=read_card(model).classes)
    return measure(model, dataset, dataset.train)


if __name__ == "__main__":
    folder, data, name, exported = sys.argv[1:]
    print(json.dumps(main(Path(folder), Path(data), name, Path(exported))))
