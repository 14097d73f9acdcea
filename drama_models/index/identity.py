"""Whose vectors lie in an index or a folder of vectors: the name that a model was given, and a hash of what it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from drama_models.encoder import Encoder


@dataclass(frozen=True)
class ModelIdentity:
    """The model whose vectors an index holds."""

    name: str
    """Folder or hub name, as it was given."""
    fingerprint: str
    """SHA-256 of configuration, tokenizer and weights, of both encoders where there are two."""
    document_name: str | None = None
    """Folder or hub name of its document encoder, where that is another one."""

    def __str__(self) -> str:
        return self.name if self.document_name is None else f"{self.name} with {self.document_name}"

    @classmethod
    def of(cls, encoder: Encoder, name: str | None = None, document_name: str | None = None) -> ModelIdentity:
        """Identity of a loaded encoder; its names as the user gave them, by default its folders."""
        if name is None and encoder.document_encoder.folder != encoder.folder:
            document_name = document_name or str(encoder.document_encoder.folder)
        return cls(name or str(encoder.folder), encoder.fingerprint(), document_name)

    @classmethod
    def read(cls, record: Any) -> ModelIdentity:
        """What `record` gave.

        Raises:
            ValueError: something else.
        """
        names = {"name", "fingerprint"}
        known = isinstance(record, dict) and names <= set(record) <= names | {"document_name"}
        if not known or not all(isinstance(value, str) for value in record.values()):
            raise ValueError("A model is named by the texts `name` and `fingerprint`, and perhaps `document_name`.")
        return cls(**record)

    def record(self) -> dict[str, str]:
        """As a manifest keeps it."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def renamed(self, rename: Callable[[str], str]) -> ModelIdentity:
        """The same model with other names, such as those of its folders as seen from elsewhere."""
        return replace(self, name=rename(self.name), document_name=self.document_name and rename(self.document_name))
