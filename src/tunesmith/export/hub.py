"""Putting files into a repository on the hub: created private, uploaded, and committed once, whatever happens on the way.

The client retries uploads itself. A commit it does not: an answer that got lost may mean either. So after a fault the
repository's head is looked at first; if it moved, its files decide whether the commit was ours; if not, the same commit is sent
again with the same parent, which the hub refuses should the lost one arrive after all.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tunesmith.errors import HubError
from tunesmith.export.hub_errors import TOKENS, TooBusyError, in_users_terms, is_lost, is_passing
from tunesmith.export.hub_files import Outgoing

PATIENCE = 300
"""Seconds the hub may ask to be left alone for; when it asks for more, that is said and the push ends."""
STALL = 60.0
"""Seconds without a byte after which a connection counts as lost."""
WAITS = (1, 2, 4, 8)
"""Seconds before each further try of a request that failed in passing."""

T = TypeVar("T")
Told = Callable[[str], None]


@dataclass(frozen=True)
class Pushed:
    """url: of the repository. commit: its head, 40 hex digits. private: whether only its owners see it. created: whether this
    push made it. changed: False if it held these very files already, and nothing was committed."""

    repo: str
    url: str
    commit: str
    private: bool
    created: bool
    changed: bool


def push_files(repo: str, files: Sequence[Outgoing], message: str, public: bool = False, told: Told = lambda line: None) -> Pushed:
    """Put ``files`` at the top of the model repository ``repo``, in one commit; other files in it stay.

    Args:
        public: make the repository public if it is made; an existing one stays what it is. told: what is going on.

    Raises:
        HubError: not logged in, not permitted, not reachable, changed by somebody else, or not what was sent.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with in_users_terms(repo), _careful(told):
        answer = _patiently(api.whoami, told)
        who, role = str(answer["name"]), answer.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"Your token can only read ({who}'s).", f"Make one with write permission at {TOKENS}, and log in with it."
            )
        told(f"Logged in as {who}")
        with in_users_terms(repo, who):
            head, private, created = _open(api, repo, public, told)
            told(f"{'Made' if created else 'Found'} {repo} ({'private' if private else 'public'})")
            commit = _commit(api, repo, files, head, message, told)
            _verify(api, repo, files, commit, told)
    return Pushed(repo, f"{api.endpoint}/{repo}", commit, private, created, commit != head)


def _open(api: Any, repo: str, public: bool, told: Told) -> tuple[str, bool, bool]:
    """The repository's head, whether it is private, and whether it was made now."""
    found = _patiently(lambda: _info(api, repo), told)
    created = found is None
    if found is None:
        _patiently(lambda: api.create_repo(repo, private=not public, exist_ok=True), told)
        found = _patiently(lambda: api.model_info(repo), told)
    if found.sha is None:
        raise HubError(f"{repo} has no first commit yet.", "Try again in a moment.")
    return str(found.sha), bool(found.private), created


def _info(api: Any, repo: str) -> Any:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _commit(api: Any, repo: str, files: Sequence[Outgoing], head: str, message: str, told: Told) -> str:
    """The commit that holds the files: a new one over ``head``, or ``head`` itself if it holds them."""
    from huggingface_hub import CommitOperationAdd

    added = [CommitOperationAdd(file.name, file.content) for file in files]
    told(f"Uploading {len(files)} files, {sum(file.bytes for file in files) / 1e6:,.1f} MB")
    api.preupload_lfs_files(repo, added, free_memory=False)
    for wait in (*WAITS, None):
        try:
            return str(api.create_commit(repo, added, commit_message=message, parent_commit=head).oid)
        except Exception as error:
            if 400 <= _status_of(error) < 500 and _status_of(error) not in (408, 412, 429):
                raise  # refused for good; after anything else it may be there
            moved = _patiently(lambda: str(api.model_info(repo).sha), told)
            if moved != head and not _differences(api, repo, files, moved, told):
                told("The commit had arrived, though its answer was lost")
                return moved
            if moved != head or wait is None or not is_passing(error):
                raise
            seconds = max(wait, _retry_after(getattr(error, "response", None)))
            told(f"The hub did not {'answer' if is_lost(error) else 'take'} the commit, and it is not there; again in {seconds} s")
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def _verify(api: Any, repo: str, files: Sequence[Outgoing], commit: str, told: Told) -> None:
    """Raises HubError unless every file is on the hub as it is here."""
    if wrong := _differences(api, repo, files, commit, told):
        raise HubError(
            f"{repo} does not hold {', '.join(wrong)} as it is here, though the hub took the commit.",
            "Look at its .gitignore, and push again.",
        )


def _differences(api: Any, repo: str, files: Sequence[Outgoing], commit: str, told: Told) -> list[str]:
    """Names of files that are not in a commit as they are here."""
    from huggingface_hub.utils import sha

    names = [file.name for file in files]
    there = {entry.path: entry for entry in _patiently(lambda: api.get_paths_info(repo, names, revision=commit), told)}
    wrong = []
    for file in files:
        entry = there.get(file.name)
        if entry is None:
            wrong.append(file.name)
        elif entry.lfs is not None:
            wrong += [file.name] if entry.lfs.sha256 != _sha256(file) else []
        else:
            content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
            wrong += [file.name] if entry.blob_id != sha.git_hash(content) else []
    return wrong


def _sha256(file: Outgoing) -> str:
    import hashlib

    from tunesmith.export.manifest import sha256_of

    return hashlib.sha256(file.content).hexdigest() if isinstance(file.content, bytes) else sha256_of(file.content)


def _patiently(ask: Callable[[], T], told: Told) -> T:
    """The answer to a question that may be asked again, with a few tries."""
    for wait in WAITS:
        try:
            return ask()
        except Exception as error:
            if not is_passing(error):
                raise
            seconds = max(wait, _retry_after(getattr(error, "response", None)))
            told(f"The hub did not answer; again in {seconds} s")
            time.sleep(seconds)
    return ask()


def _status_of(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _retry_after(response: Any) -> int:
    """Seconds the hub asks to be left alone for, 0 if it does not ask. Its ways of asking are Retry-After and RateLimit."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if response is None:
        return 0
    limit = parse_ratelimit_headers(response.headers)
    asked = str(response.headers.get("retry-after", "")).strip()
    return max(int(asked) if asked.isdigit() else 0, limit.reset_in_seconds if limit and limit.remaining == 0 else 0)


@contextmanager
def _careful(told: Told) -> Iterator[None]:
    """While within, the client's connections end when they stall, it waits no longer than `PATIENCE`, and its waiting is told.

    Its own client has no time limit and waits as long as the hub asks it to; both are settings of the HTTP library's client.
    """
    from huggingface_hub import get_session

    def bounded(response: Any) -> None:
        if response.status_code in (429, 503) and (seconds := _retry_after(response)) > PATIENCE:
            raise TooBusyError(seconds)

    client, log, handler = get_session(), logging.getLogger("huggingface_hub"), _Waiting(told)
    before, level = (client.timeout, client.event_hooks), log.level
    client.timeout = STALL
    client.event_hooks = {**before[1], "response": [*before[1].get("response", []), bounded]}
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    muted = [(other, other.level) for other in log.handlers if other is not handler]
    for other, _ in muted:
        other.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        client.timeout, client.event_hooks = before
        log.removeHandler(handler)
        log.setLevel(level)
        for other, was in muted:
            other.setLevel(was)


class _Waiting(logging.Handler):
    """Tells what the client says about waiting."""

    def __init__(self, told: Told) -> None:
        super().__init__(logging.WARNING)
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        if "etrying in" in record.getMessage() or "Waiting" in record.getMessage():
            self.told(f"The hub is busy or the connection broke: {record.getMessage()}")
