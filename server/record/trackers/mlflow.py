"""MLflow: a folder of files, a database or a server, by MLflow's own client."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.tracking import located_uri
from common.errors import RunError
from common.readback import JsonFile
from server.record.trackers.tracker import End, Numbers, Tracked, environment, numbers, texts

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["MLflow", "known_run"]

_RUN, _FILE = JsonFile("mlflow.json of a run", indent=1), "mlflow.json"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_BATCH = 100  # params that a store takes at a time
_LONGEST = 500  # characters of a param that every store takes

# MLflow reads them when it calls, and some of them when it is imported.
_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # which it would otherwise refuse in favour of a database
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A server that is gone holds up a round for half a minute, once, and not for half an hour.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


class MLflow:
    """A run of MLflow's that is the same when this run goes on; no global state of MLflow's.

    Args:
        run: what is tracked.

    Raises:
        RunError: the store does not know the run that this one goes on with.
        Exception: whatever MLflow raises, where its store cannot be reached.
    """

    def __init__(self, run: Tracked) -> None:
        with environment(_ENVIRONMENT):
            from mlflow.tracking import MlflowClient

            uri = located_uri(run.settings.mlflow_uri) or None  # None: the environment's
            self._client = MlflowClient(tracking_uri=uri)
            if known := known_run(run.folder):
                self._id = known
                self._go_on(run)
            else:
                self._id = self._created(run)
                _RUN.write(run.folder / _FILE, {"run-id": self._id})
            self._catch_up(run.history)

    def write(self, round_number: int, values: Numbers) -> None:
        self._log({(name, round_number): value for name, value in values.items()})

    def summarize(self, figures: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        last = {
            (f"summary/{name}", int(figures["rounds"])): value
            for name, value in numbers(figures).items()
        }
        with environment(_ENVIRONMENT):
            there = self._there({name for name, _ in last})
            self._log({k: v for k, v in last.items() if there.get(k) != v})
            for name, text in texts(figures).items():
                self._client.set_tag(self._id, f"fedhead.{name}", text)
            for path in files.values():
                self._client.log_artifact(self._id, str(path))

    def close(self, end: End) -> None:
        with environment(_ENVIRONMENT):
            self._client.set_terminated(self._id, _STATUS[end])

    def _go_on(self, run: Tracked) -> None:
        """Open the run again that MLflow has for this one.

        Raises:
            RunError: the store has no such run.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(self._id, status="RUNNING")
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            store = run.settings.mlflow_uri or "of MLFLOW_TRACKING_URI"  # which may hold a password
            raise RunError(
                f"MLflow's store {store} has no run {self._id}: set "
                f"tracking.mlflow-uri to the store that has it, or remove {run.folder / _FILE} for "
                "a new run there"
            ) from exc

    def _created(self, run: Tracked) -> str:
        from mlflow.entities import Param

        tags = {f"fedhead.{name}": value for name, value in run.tags.items()}
        made = self._client.create_run(
            _experiment(self._client, run.project), tags=tags, run_name=run.folder.name
        )
        params = [Param(key, str(value)[:_LONGEST]) for key, value in run.params.items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(made.info.run_id, params=params[start : start + _BATCH])
        return str(made.info.run_id)

    def _catch_up(self, history: Mapping[int, Numbers]) -> None:
        """Log what a process that was killed, or a store that was gone, has left out."""
        all_ = {(name, n): value for n, values in history.items() for name, value in values.items()}
        there = self._there({name for name, _ in all_})
        self._log({key: value for key, value in all_.items() if key not in there})

    def _there(self, names: set[str]) -> dict[tuple[str, int], float]:
        """What the store has of these metrics, by name and round."""
        return {
            (metric.key, metric.step): metric.value
            for name in sorted(names)
            for metric in self._client.get_metric_history(self._id, name)
        }

    def _log(self, values: Mapping[tuple[str, int], float]) -> None:
        with environment(_ENVIRONMENT):
            from mlflow.entities import Metric

            now = time.time_ns() // 1_000_000
            metrics = [Metric(name, value, now, n) for (name, n), value in values.items()]
            for start in range(0, len(metrics), _BATCH):
                self._client.log_batch(self._id, metrics=metrics[start : start + _BATCH])


def known_run(folder: Path) -> str:
    """The id that MLflow has for the run in a folder; empty: it does not know it yet.

    Raises:
        DamagedError: the file that holds it has changed since it was written.
    """
    file = folder / _FILE
    return str(_RUN.read(file)["run-id"]) if file.exists() else ""


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is made when missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run has just made it, or it cannot be made
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)
