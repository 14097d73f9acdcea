"""`python -m export publish`: a verified release to the model hub; without `--really`, only what would be done.

Uploaded are exactly the files that `verification.json` vouches for. Files that the repository has besides stay there.
The token comes from the environment (HF_TOKEN) or from the hub's own login, and from nowhere else.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from drama_models.errors import HubError, ModelFolderError
from export.verification import check_verification

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class PublishRecipe:
    """Settings of a publication."""

    release: Path
    """Release folder that `python -m export verify` has passed."""
    repo: str
    """Repository on the hub, owner/name; it must exist."""
    revision: str | None = None
    """Branch to commit to, made where it is missing; main by default."""
    pull_request: bool = False
    """Open a pull request instead of committing to a branch."""
    message: str = "Release that every client agrees on"
    """Of the commit."""
    really: bool = False
    """Upload; without it nothing leaves this machine."""

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.repo):
            raise ValueError(f"repo={self.repo!r} is no name on the hub; use owner/name.")
        if self.revision and self.pull_request:
            raise ValueError("revision and pull_request exclude each other; a pull request is opened against main.")

    @property
    def target(self) -> str:
        """Where the files go, in words."""
        place = "a new pull request" if self.pull_request else f"branch {self.revision or 'main'}"
        return f"{place} of {self.repo}"


def publish(recipe: PublishRecipe) -> str:
    """Upload a release, or say what would be uploaded.

    Returns:
        A line for each file with its size in bytes, and what was or would be done.

    Raises:
        ModelFolderError: not a folder, or not verified as it is now.
        HubError: no token, no such repository, or an upload that failed.
    """
    if not recipe.release.is_dir():
        raise ModelFolderError(f"There is no release folder at {recipe.release}; check the path.")
    names = check_verification(recipe.release)
    sizes = {name: (recipe.release / name).stat().st_size for name in names}
    total = f"{len(names)} files, {sum(sizes.values()):,} bytes"
    listing = "\n".join(f"{size:>15,}  {name}" for name, size in sizes.items())
    if not recipe.really:
        return f"{listing}\nwould upload {total}, to {recipe.target}; add --really to do it"
    return f"{listing}\nuploaded {total}, to {recipe.target}: {_upload(recipe, names)}"


def _upload(recipe: PublishRecipe, names: list[str]) -> str:
    """Address of the commit or pull request."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise HubError("The hub asks who you are: set HF_TOKEN to a token that may write, or run `hf auth login`.")
    api = HfApi()
    try:
        if recipe.revision and recipe.revision != "main":
            api.create_branch(recipe.repo, branch=recipe.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=recipe.repo,
            folder_path=recipe.release,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message=recipe.message,
            revision=recipe.revision,
            create_pr=recipe.pull_request,
        )
    except Exception as error:  # the errors of its HTTP client, of LFS and of the hub share no public base class
        reason = " ".join(str(error).split())[:300]
        raise HubError(
            f"{recipe.target} could not be written ({reason}); check that the repository exists and the token may "
            "write to it, then give the same command again."
        ) from error
    return str(commit.pr_url or commit.commit_url)
