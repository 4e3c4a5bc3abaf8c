"""Accuracies that devices report for a version. Each device has one file, which cannot pile up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from common.delivery.versions import Artifact, known_versions, read_artifact, shelf_of
from common.errors import DamagedError, DeliveryError
from common.readback import JsonFile
from server.delivery.publish import artifacts_of

__all__ = ["DeviceReport", "Published", "save_report", "survey"]


_MOST_EXAMPLES = 10_000_000  # with more, one device's figures would outweigh all others
_REPORT = JsonFile("report of a device")


@dataclass(frozen=True)
class DeviceReport:
    """One device's reported accuracy.

    Attributes:
        num_examples: number of its own labelled examples, at most ten million.
        accuracy: the accuracy on them, in [0, 1].
        held_out: whether it kept all of them out of its last training.

    Raises:
        DeliveryError: impossible figures.
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
    """A version and its reports.

    Attributes:
        artifact: the version.
        reports: by device.
    """

    artifact: Artifact
    reports: dict[str, DeviceReport]

    @property
    def accuracy(self) -> float | None:
        """Accuracy over all devices' examples, or their held-out ones if any; None: no report."""
        kept = [report for report in self.reports.values() if report.held_out]
        reports = kept or list(self.reports.values())
        examples = sum(report.num_examples for report in reports)
        right = sum(report.num_examples * report.accuracy for report in reports)
        return right / examples if examples else None

    @property
    def worst(self) -> str:
        """The device with the lowest accuracy, and this accuracy; empty if there is no report."""
        if not self.reports:
            return ""
        device, report = min(self.reports.items(), key=lambda entry: entry[1].accuracy)
        trained = "" if report.held_out else ", perhaps trained on"
        return f"{device} {100 * report.accuracy:.2f} % of {report.num_examples:,}{trained}"


def _reports_of(folder: Path, artifact: Artifact) -> Path:
    return folder / "reports" / artifact.name / str(artifact.version)


def save_report(folder: Path, artifact: Artifact, device: str, report: DeviceReport) -> None:
    """Keep a device's report on a version, in place of its earlier one."""
    path = _reports_of(folder, artifact) / f"{device}.json"
    _REPORT.write(path, asdict(report), durable=False)


def survey(folder: Path) -> list[Published]:
    """All published versions, by name and number, with their reports.

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
