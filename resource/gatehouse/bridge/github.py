"""The token that GitHub Actions issues to a job. A new one is requested for each use: most servers accept it once."""

from dataclasses import dataclass
from typing import Final

import httpx2

from gatehouse.bridge.credentials import Credentials, InvalidCredentials
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.http_client import exchange
from gatehouse.bridge.platform_token import is_compact_jwt
from gatehouse.bridge.settings import GitHubSettings
from gatehouse.shared.service.fetch import is_fetchable

_SERVER: Final = "token service of GitHub Actions"

_URL: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"

_PERMISSION: Final = "Give the job the permission `id-token: write`."


@dataclass(frozen=True, slots=True)
class GitHubCredentials(Credentials):
    """The right of a job to request its tokens. `secret` is the bearer token of that request."""

    url: str = ""

    async def authenticate(self, issuer: str, http: httpx2.AsyncClient) -> tuple[dict[str, str], dict[str, str]]:
        """Request a token for the issuer. Return the form parameters with it. Raises BridgeError."""
        url = httpx2.URL(self.url).copy_add_param("audience", issuer)
        request = http.build_request("GET", url, headers={"Authorization": f"Bearer {self.secret}"})
        response = await exchange(http, _SERVER, request)
        value = response.document.get("value") if isinstance(response.document, dict) else None
        if response.status != httpx2.codes.OK or not isinstance(value, str) or not is_compact_jwt(value):
            raise BridgeError(
                f"The {_SERVER} issued no token (status {response.status}). {_PERMISSION}",
                temporary=response.status >= 500,
            )
        return self.platform_parameters(value), {}


def read_github_job(client_id: str | None) -> GitHubCredentials:
    """Return the credentials of the job that this process is a part of.

    Raises:
        InvalidCredentials: it is not a job of GitHub Actions, or the job may not request tokens.
    """
    job = GitHubSettings()
    if job.url is None or job.token is None:
        raise InvalidCredentials(
            f"--github-oidc works in a job of GitHub Actions: {_URL} or ACTIONS_ID_TOKEN_REQUEST_TOKEN is not set."
            f" {_PERMISSION}"
        )
    if not is_fetchable(job.url):
        raise InvalidCredentials(f"{_URL} is not an https URL. Nothing was sent.")
    secret = job.token.get_secret_value()
    return GitHubCredentials(client_id or "", "GitHub Actions", "workload_identity", secret=secret, url=job.url)
