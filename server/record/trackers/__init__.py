"""Who else is told of a run's figures, by libraries of their own: TensorBoard, MLflow, W&B.

A file each, all told the same: ``numbers`` of each line of metrics.jsonl.
"""

from server.record.trackers.follow import tracked
from server.record.trackers.registry import check_trackers

__all__ = ["check_trackers", "tracked"]
