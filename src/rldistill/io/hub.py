"""Repositories of the Hugging Face Hub: their files in the cache of this machine, and commits to them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rldistill.core.errors import ConfigError, MissingExtraError, UntrustedFileError, error_text
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES, require_regular

COMMIT = re.compile(r"[0-9a-f]{40}")
REQUEST_TIMEOUT_S = 10
NOT_CACHED = ", and the cache of this machine does not have the files"


class _UnreachableError(ConfigError):
    """Hub that does not answer."""


class Listing(NamedTuple):
    """Files of a repository at a commit, by their names, with their sizes in bytes; None for one that is not known."""

    commit: str
    files: Mapping[str, int | None]
    folder: Path | None = None
    """Folder of these files in the cache, if the Hub did not answer."""


def _package() -> Any:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtraError("The Hugging Face Hub", "hub") from None
    return huggingface_hub


@contextmanager
def _errors(where: str, lacking: str = "") -> Iterator[None]:
    """Raise the errors of the Hub as ConfigErrors in one line that begins with `where`."""
    errors = _package().errors
    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{where}: {error_text(error)} Correct the name.") from None
    except errors.GatedRepoError:
        remedy = "Accept its conditions on its page, and log in (`hf auth login`)."
        raise ConfigError(f"{where}: the repository asks for access. {remedy}") from None
    except errors.RepositoryNotFoundError:
        remedy = "Check the name, or log in (`hf auth login`)."
        raise ConfigError(f"{where}: the Hub has no such repository, or it is private. {remedy}") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{where}: no such revision. Name a branch, a tag or a commit.") from None
    except errors.OfflineModeIsEnabled:
        raise _UnreachableError(f"{where}: HF_HUB_OFFLINE is set{lacking}. Unset it.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigError(f"{where}: the token does not allow it. Log in with another (`hf auth login`).") from None
        raise _UnreachableError(f"{where}: the Hub answers with status {status}{lacking}. Try again later.") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        problem = f"the Hub cannot be reached ({error_text(error)}){lacking}"
        raise _UnreachableError(f"{where}: {problem}. Check the network.") from None


def list_repository(repository: str, revision: str, where: str) -> Listing:
    """Return the files at a branch, tag or commit; those in the cache if the Hub does not answer.

    Raises:
        ConfigError: No such repository or revision, or no connection and nothing in the cache.
    """
    package = _package()
    cache = Path(package.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = cache / "refs" / revision
    try:
        with _errors(where, NOT_CACHED):
            info = package.HfApi().model_info(
                repository, revision=revision, files_metadata=True, timeout=REQUEST_TIMEOUT_S
            )
    except _UnreachableError:
        commit = (
            revision
            if COMMIT.fullmatch(revision)
            else reference.read_text(encoding="utf-8")
            if reference.is_file()
            else ""
        )
        folder = cache / "snapshots" / commit
        if not COMMIT.fullmatch(commit) or not folder.is_dir():
            raise
        files = {path.relative_to(folder).as_posix(): None for path in sorted(folder.rglob("*")) if path.is_file()}
        return Listing(commit, files, folder)
    if not COMMIT.fullmatch(str(info.sha)):
        raise ConfigError(f"{where}: the Hub names no commit. Check HF_ENDPOINT.")
    if not COMMIT.fullmatch(revision):  # as the Hub's own program does, for a later time without a connection
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(info.sha, encoding="utf-8")
    return Listing(info.sha, {file.rfilename: file.size for file in info.siblings or ()})


def download(repository: str, listing: Listing, names: Sequence[str], where: str) -> Path:
    """Return the folder of the cache with these files of a repository, after the download of those that are missing.

    Raises:
        UntrustedFileError: A file is too large.
        ConfigError: The connection fails.
    """
    for name in names:
        if (listing.files[name] or 0) > MAX_WEIGHTS_BYTES:
            size, limit = f"{listing.files[name]:,}", f"{MAX_WEIGHTS_BYTES:,}"
            raise UntrustedFileError(
                f"{where}: {name} has {size} bytes, above the limit of {limit}. Use a smaller one."
            )
    folder = listing.folder
    for name in names if folder is None else ():
        with _errors(where, NOT_CACHED):
            path = Path(_package().hf_hub_download(repository, name, revision=listing.commit))
        require_regular(path, MAX_WEIGHTS_BYTES)
        folder = path.parents[name.count("/")]
    assert folder is not None
    return folder


def commit(
    repository: str,
    files: Mapping[str, Path | bytes],
    message: str,
    private: bool,
    replaces: Callable[[str], bool] | None,
) -> str:
    """Commit files to a repository, which is created if there is none; return its address.

    Args:
        repository: Name of the repository.
        files: Files by their names in it.
        message: Title of the commit.
        private: True for a repository that only its owner sees.
        replaces: Test of the names of earlier files that are deleted; None to refuse a repository that has files.

    Raises:
        ConfigError: No token, no right to write, or a repository with files.
    """
    package, where = _package(), f"--repo: {repository}"
    if package.get_token() is None:
        raise ConfigError("--repo: there is no token of the Hub. Log in (`hf auth login`), or set HF_TOKEN.")
    api = package.HfApi()
    with _errors(where):
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        info = api.model_info(repository, timeout=REQUEST_TIMEOUT_S)
    existing = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
    if private and not info.private:
        raise ConfigError(f"--private: {repository} exists and is public. Name another repository.")
    if existing and replaces is None:
        raise ConfigError(f"{where}: it has files already. Name another repository, or replace them with --overwrite.")
    operations = [package.CommitOperationAdd(name, content) for name, content in files.items()]
    outdated = [name for name in sorted(existing - files.keys()) if replaces is not None and replaces(name)]
    operations += [package.CommitOperationDelete(name) for name in outdated]
    with _errors(where):
        api.create_commit(repository, operations, commit_message=message)
    return str(url)
