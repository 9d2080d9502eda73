"""/authorize exists because clients expect it, and refuses every request."""

import pytest
from support.authserver import AuthServer

"""What is checked here depends on no database."""


@pytest.mark.parametrize(
    "query",
    [
        "",
        "response_type=code&client_id=agent_a&redirect_uri=https%3A%2F%2Fevil.example%2Fcallback&state=s",
        "response_type=token&redirect_uri=javascript:alert(1)",
        "redirect_uri=%0d%0aLocation:%20https://evil.example",
    ],
    ids=["nothing", "code", "token", "header injection"],
)
def test_authorize_responds_with_an_error_and_never_redirects(authserver: AuthServer, query: str) -> None:
    """RFC 6749 10.15 warns of open redirectors."""
    response = authserver.http.get("/authorize", query_string=query)
    assert response.status_code == 400
    assert "Location" not in response.headers
    assert response.json["error"] == "unsupported_response_type"
    assert "client_credentials" in response.json["error_description"]
    assert "evil" not in response.text
    assert response.headers["Cache-Control"] == "no-store"
