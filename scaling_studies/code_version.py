"""Which code a result comes from: the trainer's digest, the git revision, and the changes since as a text.

It owns reading and keeping them; it does not own which sources count (``janus.source_digest``) nor what happens when
the code changes under a campaign (``runner``).

``trainer_version`` enters the identity of every cell: other code is another cell. Changes since the revision are kept
once per study, in ``code/HASH.patch``, named by the hash of their text.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from janus import __version__
from janus.errors import UserError
from janus.host_facts import NOT_APPLICABLE, not_applicable
from janus.source_digest import PACKAGE, source_digest
from scaling_studies.atomic import write_new_atomically

CODE_FOLDER = "code"
REPOSITORY = PACKAGE.parent
SOURCES = ("janus", "perfmodel", "scaling_studies", "pyproject.toml", "constraints.txt")  # what a patch covers
GIT_TIMEOUT_S = 60.0  # assumed: more than a slow network file system needs
UNCHANGED = not_applicable("the sources are those of the revision")
NO_REPOSITORY = "the code was installed without its git repository, the version is a digest of its sources"


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """The code as it lies on disk. version: see ``trainer_version``; revision: of git; patch: changes since, "" none.

    revision None: there is a repository and git could not read it; patch is then "" and says nothing.
    """

    version: str
    revision: str | None
    patch: str = ""

    @property
    def diff(self) -> str | None:
        """Hash of the patch, by which it is kept, or why there is none; None where it is not known."""
        if self.revision is None:
            return None
        if self.revision.startswith(NOT_APPLICABLE):
            return self.revision
        return _digest(self.patch) if self.patch else UNCHANGED

    def keep(self, study: Path) -> None:
        """Write the patch into the study's folder unless it lies there. Raises UserError."""
        if self.patch:
            _keep(study / CODE_FOLDER / f"{_digest(self.patch)}.patch", self.patch)


def trainer_version() -> str:
    """Version of the package and digest of the trainer's sources as they lie on disk now."""
    return f"{__version__}+{source_digest()}"


def source_state(repository: Path = REPOSITORY) -> SourceState:
    """Version, revision and changes of the code that this process would start the trainer from."""
    version = trainer_version()
    if not (repository / ".git").exists():
        return SourceState(version=version, revision=not_applicable(NO_REPOSITORY))
    try:
        revision = _git(repository, "rev-parse", "HEAD").strip()
        patch = _git(repository, "diff", "HEAD", "--", *SOURCES)
        new = _git(repository, "ls-files", "--others", "--exclude-standard", "--", *SOURCES).splitlines()
        patch += "".join(_git(repository, "diff", "--no-index", "--", "/dev/null", path) for path in new)
    except (OSError, subprocess.SubprocessError):
        return SourceState(version=version, revision=None)
    return SourceState(version=version, revision=revision, patch=patch)


def _git(repository: Path, *words: str) -> str:
    """What git prints. ``diff --no-index`` ends with 1 where there is a difference."""
    command = ["git", "-c", "core.quotepath=off", "-C", str(repository), *words]
    done = subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT_S, stdin=subprocess.DEVNULL)
    if done.returncode and not (done.returncode == 1 and "--no-index" in words):
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout.decode("utf-8", errors="replace")


def installed_distributions() -> str:
    """Name and version of every installed distribution, one per line, sorted: what a lock file would hold."""
    names = {(found.name or "").lower(): found.version for found in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(names.items()) if name)


def keep_distributions(study: Path) -> str:
    """Write the list of installed distributions into the study's folder once; returns its hash. Raises UserError."""
    text = installed_distributions()
    _keep(study / CODE_FOLDER / f"{_digest(text)}.txt", text)
    return _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _keep(path: Path, text: str) -> None:
    try:
        write_new_atomically(path, text)
    except FileExistsError:
        if path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path} does not hold what its name says: move it away") from None
