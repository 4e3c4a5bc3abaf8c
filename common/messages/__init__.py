"""What travels between server and node: the only place where Flower's record keys live.

===============  ==============================================  ==============================
message          content                                         reply
===============  ==============================================  ==============================
query.describe   config                                          report
query.backbone   config: the fingerprint, with or without bytes  report
train            config, shared: head, arrays of the plan        report
train (stock)    arrays (head), config                           arrays (head), metrics, report
evaluate         config, shared: head                            report
query.baselines  config                                          report: arrays (two heads)
===============  ==============================================  ==============================

A head on its way down and the fields on their way up are what the plan's codecs make of them, see
common.codecs; other arrays lie in a record of values as safetensors. A SuperLink keeps each record,
array and piece of an array as an object of its own, with requests of its own, and they are what it
has time for. Equal objects are kept and sent to it once, so what all nodes get is in a record of
its own. A stock strategy gets the arrays and metrics that it knows.
"""

from __future__ import annotations

from common.messages.content import array_bytes, content_id, payload_bytes
from common.messages.evaluation import ClientEvaluation, EvaluateReply, EvaluateRequest
from common.messages.heads import read_head, read_heads, write_head, write_heads
from common.messages.queries import (
    BackboneReply,
    BackboneRequest,
    BaselineRequest,
    DescribeReply,
    DescribeRequest,
)
from common.messages.training import ClientReport, Rejection, TrainReply, TrainRequest

__all__ = [
    "BackboneReply",
    "BackboneRequest",
    "BaselineRequest",
    "ClientEvaluation",
    "ClientReport",
    "DescribeReply",
    "DescribeRequest",
    "EvaluateReply",
    "EvaluateRequest",
    "Rejection",
    "TrainReply",
    "TrainRequest",
    "array_bytes",
    "content_id",
    "payload_bytes",
    "read_head",
    "read_heads",
    "write_head",
    "write_heads",
]
