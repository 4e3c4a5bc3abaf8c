"""The section on who else is told of a run's figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field

from common.toml_model import Section

__all__ = ["TRACKERS", "TrackingConfig", "located_uri"]

TRACKERS = ("tensorboard", "mlflow", "wandb")
"""Their names; server/record/trackers has a file for each."""

_SQLITE = "sqlite:///"


def _known(value: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in value if name not in TRACKERS]
    if unknown or len({*value}) < len(value):
        raise ValueError(f"must be some of {', '.join(TRACKERS)}, each once")
    return value


def _without_password(value: str) -> str:
    if "@" in urlsplit(value).netloc:
        raise ValueError(
            "must hold no user or password, for it is written into the run folder: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return value


# TOML has lists, which are no tuples to a strict model.
TrackerNames = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_known)]


class TrackingConfig(Section):
    """[tracking]: who else is told of a run's figures, beside its own folder."""

    trackers: TrackerNames = Field(
        ("tensorboard",), description=f"Some of {', '.join(TRACKERS)}; [] for none."
    )
    project: str = Field("", max_length=128)
    """MLflow's experiment and W&B's project; empty: the experiment's name."""
    mlflow_uri: Annotated[str, AfterValidator(_without_password)] = ""
    """Folder or address of MLflow's store; empty: as MLFLOW_TRACKING_URI says, else the folder
    mlruns in the working folder."""
    wandb_mode: Literal["auto", "online", "offline"] = "auto"
    """auto: as WANDB_MODE says, else online. offline writes into the run folder, for wandb sync."""


def located_uri(uri: str) -> str:
    """MLflow's store, so that it is found from any working folder.

    Args:
        uri: as configured.

    Returns:
        An address as it is, a folder or database file by its absolute path; empty where
        ``MLFLOW_TRACKING_URI`` may hold a password, and has to be there whenever the run goes on.
    """
    if not uri:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "") or "mlruns"
        if "@" in urlsplit(uri).netloc:
            return ""
    if uri.startswith(_SQLITE) and not uri.startswith(f"{_SQLITE}/"):
        return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"
    if uri.startswith("file:") and not uri.startswith("file:/"):  # relative, as MLflow reads it
        uri = unquote(uri.removeprefix("file:"))
    elif ":" in uri or uri in ("databricks", "uc"):
        return uri
    return str(Path(uri).expanduser().absolute())
