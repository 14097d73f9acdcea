"""`verification.json`: which clients have loaded exactly these files, and how far they were from one another.

Written by `python -m export release`, `adopt` and `verify` when no client disagrees; `python -m export publish` takes
no folder without it, or with a file that was changed, added or lost since. Hidden files are no part of a release.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.model_folder import PICKLES, read_json
from drama_models.provenance import installed_versions
from export.card import CARD_FILE, replace_parity
from export.client_environments import this_environment
from export.verify import compare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from export.client_environments import Environment
    from export.verify import Parity

FILE_NAME = "verification.json"


def verify_and_record(folder: Path, texts: Sequence[str], environments: Sequence[Environment] = ()) -> list[Parity]:
    """Compare every installed client on a release folder; where all agree, leave the result in it and on its card.

    Args:
        folder: a release folder; an older record in it is removed first, so that a failure leaves none.
        texts: encoded as documents.
        environments: to look for clients in; this one by default.

    Returns:
        One entry for each client, those that disagree or are not installed among them.

    Raises:
        ModelFolderError: not a release folder.
    """
    (folder / FILE_NAME).unlink(missing_ok=True)
    parity = compare(folder, texts, environments or [this_environment()])
    if not any(entry.failed for entry in parity):
        card = folder / CARD_FILE
        if card.is_file():
            text = replace_parity(card.read_text(encoding="utf-8"), [entry.as_json() for entry in parity])
            with atomic_file(card) as path:
                path.write_text(text, encoding="utf-8")
        write_verification(folder, parity)
    return parity


def write_verification(folder: Path, parity: Sequence[Parity]) -> None:
    """Record a passed comparison, together with the hash of every file that it was made on."""
    record = {
        "clients": [client.as_json() for client in parity if not client.problem],
        "versions": installed_versions(),
        "files": {name: sha256_of_file(folder / name) for name in release_files(folder)},
    }
    with atomic_file(folder / FILE_NAME) as path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_verification(folder: Path) -> list[str]:
    """Names of the files of a folder that clients agree on, the record itself included.

    Raises:
        ModelFolderError: no record, one without clients, files that are not those it was made on, or a pickle.
    """
    remedy = f"run `python -m export verify {folder}` first."
    if not (folder / FILE_NAME).is_file():
        raise ModelFolderError(f"{folder} holds no {FILE_NAME}: no client is known to load it; {remedy}")
    record = read_json(folder / FILE_NAME)
    verified = record.get("files")
    if not isinstance(verified, dict) or not record.get("clients"):
        raise ModelFolderError(f"{folder / FILE_NAME} names no client that has loaded these files; {remedy}")
    found = release_files(folder)
    pickles = [name for name in found if name.endswith(PICKLES)]
    if pickles:
        raise ModelFolderError(f"{folder} holds a pickle ({pickles[0]}), which can run code; remove it, then {remedy}")
    changed = sorted(
        {*verified, *found} - {name for name in found if sha256_of_file(folder / name) == verified.get(name)}
    )
    if changed:
        raise ModelFolderError(f"{', '.join(changed)} of {folder} changed after clients were compared; {remedy}")
    return [*found, FILE_NAME]


def release_files(folder: Path) -> list[str]:
    """Names of the files of a release with forward slashes, sorted; hidden ones and the record itself left out."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]
    return sorted(name for name in visible if name != FILE_NAME)
