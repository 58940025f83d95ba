"""Hugging Face: which files of a repository, at which commit, and what stands in the way of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from localllama.config import Network
from localllama.errors import (
    AccessDenied,
    ConnectionLost,
    Gated,
    InvalidConfig,
    InvalidName,
    LocalLlamaError,
    Offline,
    RateLimited,
    RemoteNotFound,
    ServerFailed,
    UsageProblem,
)
from localllama.files import storing, write_atomic
from localllama.names import Licence, Ref, RemoteFile, is_digest
from localllama.paths import Paths
from localllama.sources import Listing
from localllama.sources.selection import Parts, choose, is_weights, models_in, require_checkpoint

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoSibling

T = TypeVar("T")

_TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_LOG_IN = f"create a token at {_TOKENS_PAGE}, then run `localllama login`"
_MAX_ATTEMPTS = 3  # a person waits in front of these without seeing anything move
_LOOKUPS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Found:
    """A repository with GGUF files; the sizes are those of its smallest and largest model."""

    repo: str
    downloads: int
    likes: int
    gated: bool
    smallest_bytes: int
    largest_bytes: int
    updated: str
    licence: str


def files(ref: Ref, network: Network, paths: Paths) -> Listing:
    """List the GGUF model that ``ref`` names, or the checkpoint to make it of, at one commit.

    ``ref.files`` decides, else ``ref.quant``, else the usual preference; where there is no GGUF
    at all, it is the checkpoint. Raises UsageProblem (several fit), RemoteNotFound (none fits, or
    no such repository), UnsupportedFile (neither), Gated, AccessDenied and the other NetworkErrors.
    """
    token = "" if network.offline else find_token(paths)
    hub = _Hub(network, token)
    info = hub.model(ref.repo, ref.revision)
    siblings = {
        sibling.rfilename: sibling
        for sibling in info.siblings or ()
        if _is_plain(sibling.rfilename)
    }
    chosen = _chosen(ref, {name: max(0, _size(sibling)) for name, sibling in siblings.items()})
    if info.gated:
        # The metadata of a gated repository is public: only this says whether its files are.
        hub.require_access(ref.repo)
    commit = str(info.sha)
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise ServerFailed(f"the hub gave no commit for {ref.repo}", "try again later")
    base = f"{network.hf_endpoint.rstrip('/')}/{ref.repo}/resolve/{commit}/"
    remote = tuple(
        RemoteFile(
            PurePosixPath(name).name if role == "model" else name,
            url=base + quote(name),
            size=_size(siblings[name]),
            sha256=_sha256(ref, siblings[name]),
            role=role,
            revision=commit if role == "model" else siblings[name].blob_id or commit,
            token=token,
        )
        for name, role in chosen.items()
    )
    return Listing(remote, commit, _licence(info), bool(info.gated))


def _chosen(ref: Ref, sizes: dict[str, int]) -> dict[str, str]:
    """Return the names of the files to fetch, with their roles."""
    has_others = any(map(is_weights, sizes)) and not models_in(sizes)
    if ref.original or (has_others and not ref.files):
        return require_checkpoint(ref.repo, sizes)
    return dict.fromkeys(choose(ref, sizes), "model")


def models(ref: Ref, network: Network, paths: Paths) -> tuple[Parts, ...]:
    """Return the files of every GGUF model in a repository; raises as ``files`` does."""
    info = _Hub(network, "" if network.offline else find_token(paths)).model(ref.repo)
    names = [item.rfilename for item in info.siblings or () if _is_plain(item.rfilename)]
    return models_in(names)


def search(words: str, network: Network, paths: Paths, limit: int = 20) -> list[Found]:
    """Return the most downloaded GGUF repositories that match ``words``; raises NetworkError."""
    hub = _Hub(network, "" if network.offline else find_token(paths))
    repos = hub.search(words, limit)
    # The search tells no sizes of files, so every repository is asked once more.
    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as pool:
        return [_found(info) for info in pool.map(hub.model_if_visible, repos) if info]


def find_token(paths: Paths) -> str:
    """Return the token to use, or empty: ``HF_TOKEN``, our own login, huggingface_hub's login.

    Raises AccessDenied for one that cannot be a token.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        with storing(paths.token_file):
            if paths.token_file.exists():
                token = paths.token_file.read_text(errors="replace").strip()
    if not token:
        token = _their_token()
    if token and not _is_token(token):
        raise AccessDenied("what is saved as Hugging Face token is none", _LOG_IN)
    return token


def save_token(paths: Paths, token: str) -> None:
    """Keep ``token`` for later pulls, readable by its owner only.

    Raises UsageProblem for what cannot be a token, StoreError where it cannot be written.
    """
    if not _is_token(token.strip()):
        raise UsageProblem("this is not a token", f"copy one from {_TOKENS_PAGE}")
    with storing(paths.token_file):
        write_atomic(paths.token_file, token.strip().encode(), mode=0o600)


def whoami(token: str, network: Network) -> str:
    """Return the user whom ``token`` belongs to; raises AccessDenied for a wrong one."""
    hub = _Hub(network, token)
    who = hub.ask(lambda api: api.whoami(token=token), "")
    return str(who.get("name", ""))


class _Hub:
    """huggingface_hub's client for one endpoint and token: with patience and our errors."""

    def __init__(self, network: Network, token: str) -> None:
        """Raise Offline before anything is imported or asked."""
        if network.offline:
            raise Offline("Hugging Face needs the network, and offline mode forbids it")
        self.network = network
        self.token = token
        self.endpoint = network.hf_endpoint.rstrip("/")

    def model(self, repo: str, revision: str = "") -> ModelInfo:
        """Return a repository's facts with the size and sha256 of every file."""
        return self.ask(
            lambda api: api.model_info(
                repo,
                revision=revision or None,
                files_metadata=True,
                timeout=self.network.timeout_seconds,
            ),
            repo,
        )

    def require_access(self, repo: str) -> None:
        """Raise Gated or AccessDenied where the files of ``repo`` are not for this user."""
        self.ask(lambda api: api.auth_check(repo), repo)

    def model_if_visible(self, repo: str) -> ModelInfo | None:
        """Return what ``model`` returns, or None where this user may not see it."""
        try:
            return self.model(repo)
        except (RemoteNotFound, AccessDenied, Gated):
            return None

    def search(self, words: str, limit: int) -> list[str]:
        """Return the names of at most ``limit`` repositories, the most downloaded first."""
        from huggingface_hub import get_session, hf_raise_for_status

        def get(_: HfApi) -> list[str]:
            # Not api.list_models: it waits for ever on a server that is silent.
            answer = get_session().get(
                f"{self.endpoint}/api/models",
                params={"search": words, "filter": "gguf", "sort": "downloads", "limit": limit},
                headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
            )
            hf_raise_for_status(answer)
            return [str(item["id"]) for item in answer.json()[:limit]]

        return self.ask(get, "")

    def ask(self, question: Callable[[HfApi], T], repo: str) -> T:
        """Return the answer to ``question``; asks again when the server or the line fails."""
        from localllama.download.web import Retry

        for attempt in range(1, min(self.network.retries, _MAX_ATTEMPTS)):
            try:
                return self._ask_once(question, repo)
            except (RateLimited, ServerFailed, ConnectionLost) as error:
                time.sleep(Retry(error, _retry_after(error.__cause__)).delay(attempt))
        return self._ask_once(question, repo)

    def _ask_once(self, question: Callable[[HfApi], T], repo: str) -> T:
        _prepare()
        import httpx2
        from huggingface_hub import HfApi, get_session
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        from localllama.download.web import plainly

        try:
            session = get_session()
        except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
            raise InvalidConfig(
                f"a proxy or certificate setting cannot be used: {error}",
                "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE",
            ) from error
        # Most of HfApi's methods pass no timeout on and would wait for ever.
        session.timeout = httpx2.Timeout(self.network.timeout_seconds)
        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        try:
            return question(api)
        except HfHubHTTPError as error:
            raise self._refusal(error, repo) from error
        except OfflineModeIsEnabled as error:
            raise Offline("huggingface_hub is set to offline", "unset HF_HUB_OFFLINE") from error
        except HFValidationError as error:
            raise InvalidName(f"{repo!r} is not the name of a repository", str(error)) from error
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise InvalidConfig(
                f"{self.endpoint!r} is not a web address", "see HF_ENDPOINT or network.hf_endpoint"
            ) from error
        except httpx2.HTTPError as error:
            raise ConnectionLost(
                f"cannot reach {self.endpoint}: {plainly(error)}",
                "check the connection and the proxy settings, then try again",
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ServerFailed(
                f"{self.endpoint} gave an answer that makes no sense", "check HF_ENDPOINT"
            ) from error

    def _refusal(self, error: HfHubHTTPError, repo: str) -> LocalLlamaError:
        """Return what an error status of the hub means to a user."""
        status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
        page = f"https://huggingface.co/{repo}"
        if code == "GatedRepo":
            first = "" if self.token else f"log in ({_LOG_IN}); "
            return Gated(
                f"{repo} is gated: its owner grants access person by person",
                f"{first}visit {page}, accept the terms there, then `localllama login`",
                page,
            )
        if code == "RevisionNotFound":
            return RemoteNotFound(f"{repo} has no such revision", f"see {page}/commits/main")
        if code == "RepoNotFound" or status == 404:
            return RemoteNotFound(
                f"there is no repository {repo} on Hugging Face",
                "check the spelling, or try `localllama search`; a private repository looks "
                + ("missing to a token without access" if self.token else "missing without a token")
                + f" ({_LOG_IN})",
            )
        if status == 401 and self.token:
            return AccessDenied("Hugging Face does not accept the token", _LOG_IN)
        if status in (401, 403):
            return AccessDenied(f"Hugging Face refuses access to {repo or 'this'}", _LOG_IN)
        if status == 429:
            return RateLimited(
                "Hugging Face answers no more requests for now (429)",
                "wait some minutes; with a token more are allowed (`localllama login`)",
            )
        return ServerFailed(f"{self.endpoint} failed with status {status}", "try again later")


def _prepare() -> None:
    """Turn off huggingface_hub's telemetry and talk, and show it the user's certificates.

    It reads the environment when it is imported and when it opens its session.
    """
    import logging

    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # its HTTP client knows neither
        if Path(bundle := os.environ.get(variable, "")).is_file():
            os.environ.setdefault("SSL_CERT_FILE", bundle)


def _their_token() -> str:
    _prepare()
    from huggingface_hub import get_token
    from huggingface_hub.errors import OIDCError

    try:
        return (get_token() or "").strip()
    except OIDCError as error:
        raise AccessDenied(f"huggingface_hub's login failed: {error}", _LOG_IN) from error


def _is_token(text: str) -> bool:
    """Whether ``text`` can stand in a header: printable ASCII without spaces."""
    return re.fullmatch(r"[!-~]{1,1024}", text) is not None


def _retry_after(error: BaseException | None) -> float:
    """Return the seconds that the server asked a refused request to wait, or 0."""
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return float(value) if value.isdecimal() else 0.0


# what the answers hold


def _found(info: ModelInfo) -> Found:
    sizes = {sibling.rfilename: max(0, _size(sibling)) for sibling in info.siblings or ()}
    totals = [sum(sizes.get(part, 0) for part in parts) for parts in models_in(sizes)]
    return Found(
        repo=info.id,
        downloads=info.downloads or 0,
        likes=info.likes or 0,
        gated=bool(info.gated),
        smallest_bytes=min(totals, default=0),
        largest_bytes=max(totals, default=0),
        updated=info.last_modified.date().isoformat() if info.last_modified else "",
        licence=_licence(info).name,
    )


def _licence(info: ModelInfo) -> Licence:
    """Return the terms that the model card states."""
    card = info.card_data
    name, own, link = (
        str(value) if isinstance(value := getattr(card, key, None), str) else ""
        for key in ("license", "license_name", "license_link")
    )
    page = f"https://huggingface.co/{info.id}"
    if name == "other" and own:
        name = own
    if link and not link.startswith(("https://", "http://")):
        link = f"{page}/blob/main/{link}"  # a card may name a file of its own repository
    return Licence(name, link or (page if name else ""), accept=bool(info.gated))


def _size(sibling: RepoSibling) -> int:
    return sibling.size if isinstance(sibling.size, int) and sibling.size >= 0 else -1


def _sha256(ref: Ref, sibling: RepoSibling) -> str:
    """Return the digest we know, else the hub's: only files under LFS come with one."""
    name = sibling.rfilename
    known = ref.sha256.get(name) or ref.sha256.get(PurePosixPath(name).name)
    theirs = sibling.lfs.sha256 if sibling.lfs else ""
    return known or (theirs if is_digest(theirs) else "")


def _is_plain(name: str) -> bool:
    """Whether a name from outside may become a path here: relative, downward, printable."""
    return name.isprintable() and "\\" not in name and ".." not in PurePosixPath(name).parts
