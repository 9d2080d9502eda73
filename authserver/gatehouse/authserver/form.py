"""The form in a request's body: read in one way, and nothing outside of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from gatehouse.authserver.errors import invalid_request
from gatehouse.authserver.http import Request

_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_PARAMETERS = 32


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request: each once, except `resource`, which RFC 8707 lets be repeated."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    resources: Sequence[str] = ()


def parse_form(request: Request) -> Form:
    """Read the form in the body, and nothing outside of it (RFC 6749 3.2, 2.3.1).

    Raises:
        OAuthError: `invalid_request`, naming what to change.
    """
    if request.query:
        raise invalid_request("Parameters belong in the body, not in the URL.")
    content_type, _, parameters = request.headers["content-type"].partition(";")
    if content_type.strip().lower() != _FORM_TYPE:
        raise invalid_request(f"Send the parameters as {_FORM_TYPE}.")
    if parameters and parameters.strip().lower().replace('"', "") != "charset=utf-8":
        raise invalid_request("The only character set is UTF-8.")
    try:
        pairs = parse_qsl(
            request.body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(request.body),
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError:
        raise invalid_request(
            f"The body is no form: write name=value pairs, percent-encoded UTF-8, at most {_MAX_PARAMETERS}."
        ) from None
    if any("\x00" in name or "\x00" in value for name, value in pairs):
        raise invalid_request("A parameter holds a NUL character.")
    names = [name for name, _ in pairs if name != "resource"]
    if len(set(names)) != len(names):
        raise invalid_request("A parameter appears more than once (RFC 6749 3.2).")
    # "Parameters sent without a value MUST be treated as if they were omitted" (RFC 6749 3.2).
    present = [(name, value) for name, value in pairs if value]
    return Form(
        parameters={name: value for name, value in present if name != "resource"},
        resources=[value for name, value in present if name == "resource"],
    )
