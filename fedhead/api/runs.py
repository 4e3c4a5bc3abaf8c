"""A run, by its folder: what it gave, and what can be made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, DamagedError, RunError
from fedhead.api.bar import bar
from fedhead.api.experiments import Overrides
from fedhead.api.frames import Table, table
from fedhead.api.predicting import Images, predictions
from fedhead.api.session import session
from fedhead.api.working import Listener, Way, go_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from common.types import Head
    from fedhead.api.plots import Curve
    from server.record.privacy import Privacy

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A training run, by its folder: all is read from there when it is asked for.

    Attributes:
        path: the run folder, absolute.
    """

    path: Path

    @property
    def is_finished(self) -> bool:
        """Whether it has its closing figures; ``resume`` goes on with one that has not."""
        return (self.path / "summary.json").exists()

    @property
    def config(self) -> dict[str, Any]:
        """All keys by section, as TOML has them; ``fedhead.run`` takes it as an experiment."""
        from simulations.run import open_run

        with session():
            return open_run(self.path).model_dump(by_alias=True, exclude={"out"})

    @property
    def summary(self) -> dict[str, Any]:
        """The closing figures.

        Raises:
            RunError: the run has not finished.
        """
        from simulations.run import read_summary

        return read_summary(self.path)

    @property
    def privacy(self) -> Privacy | None:
        """What it guarantees of each client and has spent, by its ledger; None: it has no budget.

        Raises:
            RunError: the ledger is not there, or lacks a finished round.
            DamagedError: it was changed after it was written.
        """
        from server.record.privacy import read_privacy

        found = read_privacy(self.path)
        return found[0] if found else None

    @property
    def metrics(self) -> Table:
        """A row for each finished round, indexed by it: all numbers of metrics.jsonl.

        A ``pandas.DataFrame`` where pandas is installed, else a list of dicts. A strategy's own
        metrics are columns "strategy/NAME".
        """
        return table(self._rows(), index="round")

    @property
    def head(self) -> Head:
        """The last head: ``weight`` float32 (K, d) and ``bias`` float32 (K,).

        Raises:
            RunError: there is no finished round.
        """
        from server.round.first_head import last_head

        return last_head(self.path)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes; row k of the head is of ``classes[k]``.

        Raises:
            RunError: the run has not read its data yet.
        """
        from server.record.runfolder import read_run_json

        known = read_run_json(self.path)
        if "classes" not in known:
            raise RunError(f"{self.path} has not read its data yet, {self._how_to_go_on()}")
        return tuple(known["classes"])

    @property
    def model(self) -> Path:
        """The exported model, model.pt.

        Raises:
            RunError: it has not been written yet.
        """
        path = self.path / "model.pt"
        if not path.exists():
            raise RunError(f"{path} has not been written yet: run.export() writes it")
        return path

    def predict(self, images: Images) -> Table:
        """Class and probability of images, as the exported model gives them.

        Args:
            images: a file, a folder, an image of PIL's, an array of pixels (uint8 (H, W),
                (H, W, 3) or (n, H, W, 3)), or several of these: a list, a glob, a column.

        Returns:
            A row for each image: "image" (its path, or its position among those given), "class",
            "probability". Of an image that cannot be read the last two are missing, and a warning
            names it.

        Raises:
            DataError: that is nothing of the kind.
            RunError, ExportError: there is no model, or it does not run.
        """
        with session():
            return table(predictions(self.model, images))

    def plot(self) -> Figure:
        """Accuracy by round, beside the heads trained on all data at once.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from fedhead.api.plots import draw_curves

        summary = self.summary if self.is_finished else {}
        lines = {
            name: value
            for name in ("centralized", "ridge")
            if (value := summary.get(f"{name}_accuracy")) is not None
        }
        return draw_curves({self.path.name: [self._curve()]}, lines)

    def report(self) -> Path:
        """Write report.html into the run folder: curve, confusion matrix, clients.

        Raises:
            RunError: the run has not finished.
            MissingExtraError: jinja2 or plotly is not installed.
        """
        from simulations.report import load_runs, write_report

        return write_report(load_runs([self.path]), self.path).page

    def export(self, target: str = "model", out: str | Path | None = None) -> Path:
        """Write the last head for a runtime; the file is compared with the head before it stays.

        Args:
            target: "model", "device", "lite", "onnx", "executorch", "device-pte" or "head".
            out: the file, or a folder for it; None: the run folder.

        Returns:
            The file.

        Raises:
            ConfigError: an unknown target.
            RunError: there is no finished round, or the file could not be written.
        """
        from server.export.exporters import FILES
        from simulations.run import export_run

        if target not in FILES:
            raise ConfigError([f"target={target!r} is unknown (known: {', '.join(FILES)})"])
        with session(), bar(wanted=False):
            place = None if out is None else Path(out).expanduser()
            return export_run(self.path, [target], place)[0].path

    def resume(
        self,
        overrides: Overrides | None = None,
        *,
        engine: str = "in-process",
        on_round: Listener | Sequence[Listener] = (),
        progress: bool = True,
    ) -> Run:
        """Go on with this run; see :func:`fedhead.resume`."""
        go_on(self.path, overrides, Way(engine, on_round, progress))
        return self

    def __repr__(self) -> str:
        return f"<fedhead.Run {self.path}: {self._state()}>"

    def _repr_html_(self) -> str:
        from fedhead.api.display import block, curve_svg, facts

        values = facts(self.summary) if self.is_finished else {"state": self._state()}
        rows = self._rows()
        accuracy = [float(row["accuracy"]) for row in rows]
        drawing = curve_svg(accuracy, f"accuracy of {self.path.name} by round")
        return block(f"fedhead run {self.path.name}", str(self.path), values, drawing)

    def _state(self) -> str:
        rows = self._rows()
        last = f", accuracy {rows[-1]['accuracy']:.4f}" if rows else ""
        state = "finished" if self.is_finished else f"not finished, {self._how_to_go_on()}"
        return f"{len(rows)} round{'s' * (len(rows) != 1)}{last}, {state}"

    def _how_to_go_on(self) -> str:
        return f"go on with fedhead.resume({str(self.path)!r})"

    def _rows(self) -> list[dict[str, Any]]:
        from server.record.figures import flattened
        from server.record.runfolder import METRICS

        rows: list[dict[str, Any]] = []
        file = self.path / "metrics.jsonl"
        for line in METRICS.read(file) if file.exists() else ():
            if isinstance(line, DamagedError):
                raise line
            # Lists, as of single classes, are no columns.
            rows.append({k: v for k, v in flattened(line).items() if not isinstance(v, list)})
        return rows

    def _curve(self) -> Curve:
        from fedhead.api.plots import Curve

        rows = self._rows()
        return Curve("accuracy", [r["round"] for r in rows], [r["accuracy"] for r in rows])
