"""The messages between server and node. Only this package knows the keys of Flower's records.

===============  ==============================================  ==============================
message          content                                         reply
===============  ==============================================  ==============================
query.describe   config                                          report
query.backbone   config: the fingerprint, with or without bytes  report
train            config, shared: head or its changes, arrays     report
train (stock)    arrays (head), config                           arrays (head), metrics, report
evaluate         config, shared: head                            report
query.baselines  config                                          report: arrays (two heads)
===============  ==============================================  ==============================

The plan's codecs encode the head's changes on their way down and the fields on their way up, see
common.codecs. Other arrays are safetensors in a record of values. A SuperLink keeps each record,
array and piece of an array as a separate object with separate requests, and the number of
requests limits its speed. It keeps and receives equal objects once, so content that is the same
for all nodes has its own record. A stock strategy gets the arrays and metrics that it knows.
"""

from __future__ import annotations

from common.messages.changes import MOST_CHANGES, HeadChanges, head_id
from common.messages.content import (
    array_bytes,
    content_from,
    content_id,
    content_to,
    payload_bytes,
)
from common.messages.evaluation import ClientEvaluation, EvaluateReply, EvaluateRequest
from common.messages.heads import read_head, read_heads, write_head, write_heads
from common.messages.queries import (
    BackboneReply,
    BackboneRequest,
    BaselineRequest,
    DescribeReply,
    DescribeRequest,
)
from common.messages.training import (
    ClientReport,
    Rejection,
    TrainReply,
    TrainRequest,
    most_report_bytes,
)

__all__ = [
    "MOST_CHANGES",
    "BackboneReply",
    "BackboneRequest",
    "BaselineRequest",
    "ClientEvaluation",
    "ClientReport",
    "DescribeReply",
    "DescribeRequest",
    "EvaluateReply",
    "EvaluateRequest",
    "HeadChanges",
    "Rejection",
    "TrainReply",
    "TrainRequest",
    "array_bytes",
    "content_from",
    "content_id",
    "content_to",
    "head_id",
    "most_report_bytes",
    "payload_bytes",
    "read_head",
    "read_heads",
    "write_head",
    "write_heads",
]
