"""What devices measured with a version: one file a device, so that reports cannot pile up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from common.delivery.versions import Artifact, known_versions, read_artifact, shelf_of
from common.errors import DamagedError, DeliveryError
from common.readback import JsonFile
from server.delivery.publish import artifacts_of

__all__ = ["DeviceReport", "Published", "save_report", "survey"]


_MOST_EXAMPLES = 10_000_000  # or one device's figures would stand for all
_REPORT = JsonFile("report of a device")


@dataclass(frozen=True)
class DeviceReport:
    """One device's figures.

    Attributes:
        num_examples: its own labelled examples, at most ten million.
        accuracy: on them, in [0, 1].
        held_out: whether it kept all of them out of its last training.

    Raises:
        DeliveryError: figures that cannot be.
    """

    num_examples: int
    accuracy: float
    held_out: bool

    def __post_init__(self) -> None:
        # "not <=" also catches NaN.
        if not 1 <= self.num_examples <= _MOST_EXAMPLES or not 0 <= self.accuracy <= 1:
            raise DeliveryError(
                f"accuracy {self.accuracy} on {self.num_examples} examples, expected 0 to 1 on at "
                f"least one and at most {_MOST_EXAMPLES:,}"
            )

    def __str__(self) -> str:
        seen = "held-out images" if self.held_out else "images, perhaps trained on"
        return f"{100 * self.accuracy:.2f} % of {self.num_examples} {seen}"


@dataclass(frozen=True)
class Published:
    """A version and what devices say of it.

    Attributes:
        artifact: the version.
        reports: by device.
    """

    artifact: Artifact
    reports: dict[str, DeviceReport]

    @property
    def accuracy(self) -> float | None:
        """Over all devices' examples, of held-out ones if there are any; None without any."""
        kept = [report for report in self.reports.values() if report.held_out]
        reports = kept or list(self.reports.values())
        examples = sum(report.num_examples for report in reports)
        right = sum(report.num_examples * report.accuracy for report in reports)
        return right / examples if examples else None

    @property
    def worst(self) -> str:
        """The device with the lowest accuracy, and what it measured; empty without any."""
        if not self.reports:
            return ""
        device, report = min(self.reports.items(), key=lambda entry: entry[1].accuracy)
        trained = "" if report.held_out else ", perhaps trained on"
        return f"{device} {100 * report.accuracy:.2f} % of {report.num_examples:,}{trained}"


def _reports_of(folder: Path, artifact: Artifact) -> Path:
    return folder / "reports" / artifact.name / str(artifact.version)


def save_report(folder: Path, artifact: Artifact, device: str, report: DeviceReport) -> None:
    """Keep a device's report, in place of its earlier one on the version."""
    path = _reports_of(folder, artifact) / f"{device}.json"
    _REPORT.write(path, asdict(report), durable=False)


def survey(folder: Path) -> list[Published]:
    """All that is published, by name and version, with its reports.

    Raises:
        DeliveryError, DamagedError: a file is damaged.
    """
    artifacts = artifacts_of(folder)
    if not artifacts.is_dir():
        raise DeliveryError(f"{folder}: nothing is published there")
    found = []
    for name in sorted(path.name for path in artifacts.glob("[!.]*")):
        shelf = shelf_of(artifacts, name)
        for version in known_versions(shelf):
            artifact = read_artifact(shelf, version)
            # Temporary files begin with a dot.
            files = sorted(_reports_of(folder, artifact).glob("[!.]*.json"))
            found.append(Published(artifact, {file.stem: _read(file) for file in files}))
    return found


def _read(path: Path) -> DeviceReport:
    try:
        return DeviceReport(**_REPORT.read(path))
    except (TypeError, DeliveryError) as exc:
        raise DamagedError(str(path), str(exc)) from exc
