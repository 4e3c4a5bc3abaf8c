"""The settings of a phone, from the file phone.toml in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from client.budget import Budget
from common.toml_model import Section, read_toml, validated

__all__ = ["PhoneFolder", "PhoneSettings", "read_phone"]


class PhoneSettings(Section):
    """phone.toml: lines of ``key = value`` and no sections, so that any program can read it."""

    gateway: str = Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")
    """host:port of the gateway, with a name or address from its certificate."""
    delivery: str = Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")
    """host:port of the delivery service, with such a name or address."""
    data: str = Field("folder:images", pattern="^folder:.")
    """folder:PATH with one sub-folder of images per class; relative to this file."""
    state: str = Field("state", min_length=1)
    """Folder for blobs, features and the present task; relative to this file."""
    max_examples: int = Field(0, ge=0)
    """Largest number of images to use; 0: all."""
    allow: str = ""
    """Shell command that must exit with 0 while the phone may train."""


@dataclass(frozen=True)
class PhoneFolder:
    """A phone's folder, as ``fedhead deploy --phone`` writes it.

    Attributes:
        path: the folder.
        settings: of its phone.toml.
    """

    path: Path
    settings: PhoneSettings

    @property
    def token(self) -> Path:
        """File of the phone's secret."""
        return self.path / "phone.token"

    @property
    def authority(self) -> Path:
        """File of the certificate authorities to trust."""
        return self.path / "ca.crt"

    @property
    def trusted(self) -> Path | None:
        """Folder of the public keys of backbones and models; None: nothing need be signed."""
        folder = self.path / "trusted"
        return folder if folder.exists() else None

    @property
    def images(self) -> Path:
        """Folder with one sub-folder of images per class."""
        return self._inside(self.settings.data.removeprefix("folder:"))

    @property
    def state(self) -> Path:
        """Folder of what the phone keeps."""
        return self._inside(self.settings.state)

    @property
    def budget(self) -> Budget:
        """The owner's limits."""
        return Budget(max_examples=self.settings.max_examples, allow=self.settings.allow)

    def _inside(self, path: str) -> Path:
        return self.path / Path(path).expanduser()


def read_phone(folder: Path) -> PhoneFolder:
    """A phone's folder with its settings.

    Raises:
        ConfigError: with all problems of phone.toml.
    """
    path = folder / "phone.toml"
    return PhoneFolder(folder, validated(PhoneSettings, read_toml(path), str(path)))
