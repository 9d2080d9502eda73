"""The policy file: what it declares, and every problem of it with line and remedy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gatehouse.resourceserver.catalogue import Scope
from gatehouse.resourceserver.catalogue.argument_rules import ArgumentRule
from gatehouse.resourceserver.catalogue.policy_file import (
    MAX_LENGTH,
    ClientCredential,
    HeaderCredential,
    HttpTransport,
    InvalidPolicy,
    PolicyFile,
    StdioTransport,
    ToolPolicy,
    parse_policy,
)
from gatehouse.shared.service.rates import UNLIMITED, Rate

FOLDER = Path("/etc/gatehouse")
DIGEST = f"sha256:{'0a' * 32}"

HTTP = """\
[upstream]
url = "http://127.0.0.1:3001/mcp"
"""
PROGRAM = """\
[upstream]
command = ["npx", "-y", "server"]
"""
SCOPES = """\
[scopes."notes:read"]
[scopes."notes:write"]
description = "Add notes"
implies = ["notes:read"]
"""


def parse(text: str) -> PolicyFile:
    return parse_policy(text, FOLDER)


def refusal(text: str) -> list[str]:
    """Return the problems of a file, each without the number of its line."""
    with pytest.raises(InvalidPolicy) as refused:
        parse(text)
    return [line.partition(": ")[2] for line in str(refused.value).split("\n")]


def test_a_policy_needs_only_an_upstream_and_a_scope() -> None:
    policy = parse(f"{HTTP}{SCOPES}")
    assert (policy.resource, policy.name, policy.instructions) == (None, None, None)
    assert policy.scopes == {
        "notes:read": Scope("notes:read", ""),
        "notes:write": Scope("notes:write", "Add notes", ("notes:read",)),
    }
    assert policy.tools == {}
    upstream = policy.upstream
    assert upstream.transport == HttpTransport("http://127.0.0.1:3001/mcp", None, None)
    assert (upstream.timeout, upstream.max_result, upstream.max_sessions) == (60, 4 * 1024 * 1024, 100)
    assert (upstream.idle_timeout, upstream.caller_identity) == (600, False)


def test_the_server_is_described() -> None:
    policy = parse(f'resource = "HTTPS://Tools.example.com:443/mcp"\nname = "N"\ninstructions = "I"\n{HTTP}{SCOPES}')
    assert policy.resource == "https://tools.example.com/mcp"
    assert (policy.name, policy.instructions) == ("N", "I")


def test_the_bounds_of_an_upstream_are_read() -> None:
    bounds = "timeout = 1.5\nmax_result = 1024\nmax_sessions = 1\nidle_timeout = 5\ncaller_identity = true\n"
    upstream = parse(f"{HTTP}{bounds}{SCOPES}").upstream
    assert (upstream.timeout, upstream.max_result, upstream.max_sessions) == (1.5, 1024, 1)
    assert (upstream.idle_timeout, upstream.caller_identity) == (5, True)


def test_the_files_of_an_upstream_are_relative_to_the_policy() -> None:
    text = f'{HTTP}ca_file = "ca.pem"\n[upstream.credential]\nheader = "Authorization"\nfile = "/run/key"\n{SCOPES}'
    assert parse(text).upstream.transport == HttpTransport(
        "http://127.0.0.1:3001/mcp", FOLDER / "ca.pem", HeaderCredential("Authorization", Path("/run/key"))
    )


@pytest.mark.parametrize(
    ("more", "client_id", "resource"),
    [
        ("", None, "https://up.example/mcp"),
        ('client_id = "gateway"\nresource = "https://UP.example"\n', "gateway", "https://up.example"),
    ],
)
def test_client_credentials_are_for_the_upstream(more: str, client_id: str | None, resource: str) -> None:
    upstream = '[upstream]\nurl = "https://up.example/mcp?project=a"\n'
    credential = f'[upstream.credential]\nissuer = "https://auth.example.com"\nfile = "keys/client.json"\n{more}'
    transport = parse(f"{upstream}{credential}{SCOPES}").upstream.transport
    assert transport == HttpTransport(
        "https://up.example/mcp?project=a",
        None,
        ClientCredential("https://auth.example.com", FOLDER / "keys/client.json", client_id, resource),
    )


@pytest.mark.parametrize(
    ("program", "started"),
    [("npx", "npx"), ("./server", "/etc/gatehouse/server"), ("/usr/bin/server", "/usr/bin/server")],
)
def test_a_program_is_found_in_path_or_relative_to_the_policy(program: str, started: str) -> None:
    more = 'environment = ["HOME"]\ndirectory = "work"\nuser = "mcp"\nshared = true\n'
    policy = parse(f'[upstream]\ncommand = ["{program}", "-y", ""]\n{more}{SCOPES}')
    assert policy.upstream.transport == StdioTransport(
        (started, "-y", ""), ("HOME",), FOLDER / "work", "mcp", shared=True
    )
    plain = parse(f"{PROGRAM}{SCOPES}").upstream.transport
    assert plain == StdioTransport(("npx", "-y", "server"), (), None, None, shared=False)


def test_tools_have_scopes_or_are_open_or_denied() -> None:
    tools = f"""
[tools.add_note]
scopes = ["notes:write", "notes:read"]
digest = "{DIGEST}"
limit = "30/minute"
[tools.whoami]
any_valid_token = true
limit = "off"
[tools.delete_all]
deny = true
"""
    policy = parse(f"{HTTP}{SCOPES}{tools}")
    both = frozenset({"notes:read", "notes:write"})
    assert policy.tools == {
        "add_note": ToolPolicy("add_note", both, DIGEST, {}, Rate(30, "minute")),
        "whoami": ToolPolicy("whoami", frozenset(), None, {}, UNLIMITED),
    }
    assert policy.denied == {"delete_all"}


def test_arguments_have_rules() -> None:
    rules = f"""
[tools.add_note]
scopes = ["notes:write"]
[tools.add_note.arguments]
tenant = {{ claim = "workspace_id" }}
owner.claim = "client_id"
text = {{ max_length = 2000, pattern = "[a-z]*", required = true }}
kind = {{ enum = ["a", 1, 1.0, true] }}
count = {{ minimum = {2**53 + 1}, maximum = 1e300 }}
"""
    assert parse(f"{HTTP}{SCOPES}{rules}").tools["add_note"].arguments == {
        "tenant": ArgumentRule(claim="workspace_id"),
        "owner": ArgumentRule(claim="client_id"),
        "text": ArgumentRule(max_length=2000, pattern="[a-z]*", required=True),
        "kind": ArgumentRule(enum=("a", 1, 1.0, True)),
        "count": ArgumentRule(minimum=2**53 + 1, maximum=1e300),
    }


def test_the_examples_of_the_documentation_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
    example, rules = (
        page.partition(f"\n## {heading}\n")[2].partition("```toml\n")[2].partition("```")[0]
        for heading in ("The policy file", "Argument rules")
    )
    policy = parse(example)
    assert policy.tools.keys() == {"list_notes", "add_note"}
    assert policy.denied == {"delete_all"}
    assert parse(f"{HTTP}{SCOPES}{rules}[tools.add_note]\nany_valid_token = true\n").tools["add_note"].arguments


def test_every_problem_is_reported_with_its_line() -> None:
    text = f"""\
nme = "a"
{HTTP}comand = ["npx"]
timeout = "60"
[scopes.a]
implies = [
  "b",
]
[tools.one]
scopes = ["a", "c"]
arguments.x = {{ minimum = 2, maximum = 1 }}
[tools.two]
any_valid_tokn = true
"""
    with pytest.raises(InvalidPolicy) as refused:
        parse(text)
    *problems, missing, misspelt = str(refused.value).split("\n")
    assert problems == [
        "line 1: nme: there is no such key; did you mean name?",
        "line 4: upstream.comand: there is no such key; did you mean command?",
        "line 5: upstream.timeout: must be a number of seconds from 1 to 3600",
        'line 7: scopes.a.implies: the scope b is not declared; declare it: [scopes."b"]',
        'line 11: tools.one.scopes: the scope c is not declared; declare it: [scopes."c"]',
        "line 12: tools.one.arguments.x: minimum is greater than maximum",
    ]
    assert missing.startswith("line 13: tools.two.scopes: is missing; it must be a list of declared scopes, such as")
    assert missing.endswith("write any_valid_token = true for every client, or deny = true for none")
    assert misspelt == "line 14: tools.two.any_valid_tokn: there is no such key; did you mean any_valid_token?"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("resource = \n", "Invalid value", id="not TOML"),
        pytest.param(f"#{'x' * MAX_LENGTH}", "larger than 1024 KiB", id="too large"),
    ],
)
def test_a_file_that_cannot_be_read_has_one_problem(text: str, problem: str) -> None:
    with pytest.raises(InvalidPolicy, match=problem):
        parse(f"{text}{HTTP}{SCOPES}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('resource = "http://tools.example.com/mcp"', "resource: must use https"),
        ('resource = "https://tools.example.com/mcp#a"', "resource: A resource is an absolute URI"),
        ("resource = 1", "resource: must be the resource identifier of this server"),
        ('name = " "', "name: A server name must have 1 to 128 visible characters."),
        (f'instructions = "{"x" * 16385}"', "instructions: must be a string of at most 16384 characters"),
        ("upstrem = {}", "upstrem: there is no such key; did you mean upstream?"),
        ('"a b".c = 1', '"a b": there is no such key; use one of: resource, name, instructions, upstream, scopes'),
        (r'"\u001b[2J" = 1', r'"\x1b[2J": there is no such key'),
        ("2020-01-01 = 1", "2020-01-01: there is no such key"),
    ],
)
def test_a_problem_of_the_file_is_reported(line: str, problem: str) -> None:
    assert parse(f"{HTTP}{SCOPES}")
    [reported] = refusal(f"{line}\n{HTTP}{SCOPES}")
    assert reported.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SCOPES, "upstream: is missing; it must be the table [upstream], with url or command"),
        (f"upstream = 1\n{SCOPES}", "upstream: must be a table"),
        (f'[[upstream]]\nurl = "https://a.example"\n{SCOPES}', "upstream: must be a table"),
        (HTTP, "scopes: is missing; it must be tables such as"),
        (f"scopes = []\n{HTTP}", "scopes: must be tables such as"),
        (f"{HTTP}[scopes]\n", "scopes: must be tables such as"),
        (f"scopes.a = 1\n{HTTP}", "scopes.a: must be a table"),
        (f'{HTTP}[scopes."a b"]\n', 'scopes."a b": A scope is 1 to 128 printable ASCII characters'),
        (f"{HTTP}[scopes.a]\nimplies = [1]", "scopes.a.implies: must be a list of declared scopes"),
        (f"{HTTP}[scopes.a]\nimplies = 'a'", "scopes.a.implies: must be a list of declared scopes"),
        (
            f"{HTTP}[scopes.abc]\nimplies = ['abd']",
            "scopes.abc.implies: the scope abd is not declared; did you mean abc",
        ),
        (f"{HTTP}[scopes.a]\ndescription = '''a\nb'''", "scopes.a.description: must be at most 512 visible characters"),
        (f"{HTTP}[scopes.a]\nscope = 'b'", "scopes.a.scope: there is no such key; use one of: description, implies"),
    ],
)
def test_a_problem_of_the_upstream_table_or_a_scope_is_reported(text: str, problem: str) -> None:
    [reported] = refusal(text)
    assert reported.startswith(problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"url": "http://up.example/mcp"}, "url: must use https; plain http is for loopback addresses only"),
        ({"url": "https://a:b@up.example/mcp"}, "url: must be https://HOST/PATH, without user information"),
        ({"url": "https://up.example/mcp#f"}, "url: must be https://HOST/PATH, without user information"),
        ({"url": "ftp://up.example/mcp"}, "url: must be https://HOST/PATH"),
        ({"url": "https://up.example/mcp?a b"}, "url: must have at most 1024 characters after its question mark"),
        ({"url": "https://up.example/mcp?a#f"}, "url: must have at most 1024 characters after its question mark"),
        ({"url": 1}, "url: must be an https URL, or http on this machine"),
        ({"ca_file": ""}, "ca_file: must be the name of a file"),
        ({"ca_file": "a\\u0000"}, "ca_file: must be the name of a file"),
        ({"command": []}, "command: an upstream has either url or command; remove one of them"),
        ({"user": "mcp"}, "user: is only for an upstream with command; remove it"),
        ({"timeout": True}, "timeout: must be a number of seconds from 1 to 3600"),
        ({"timeout": 0.5}, "timeout: must be a number of seconds from 1 to 3600"),
        ({"max_result": 1024.0}, "max_result: must be a whole number of bytes from 1024 to 67108864"),
        ({"max_sessions": 0}, "max_sessions: must be a whole number from 1 to 10000"),
        ({"max_sessions": True}, "max_sessions: must be a whole number from 1 to 10000"),
        ({"idle_timeout": 86_401}, "idle_timeout: must be a number of seconds from 1 to 86400"),
        ({"caller_identity": 1}, "caller_identity: must be true or false"),
        ({"credential": 1}, "credential: must be a table"),
    ],
)
def test_a_problem_of_a_server_is_reported(change: Mapping[str, Any], problem: str) -> None:
    assert parse(f"{table('upstream', url='https://up.example/mcp')}{SCOPES}")
    [reported] = refusal(f"{table('upstream', **{'url': 'https://up.example/mcp', **change})}{SCOPES}")
    assert reported.startswith(f"upstream.{problem}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"command": []}, "command: must be a list of strings: the program and its arguments"),
        ({"command": "npx -y"}, "command: must be a list of strings: the program and its arguments"),
        ({"command": ["npx", 1]}, "command: must be a list of strings: the program and its arguments"),
        ({"command": ["npx", "\\u0000"]}, "command: must be a list of strings: the program and its arguments"),
        ({"command": [""]}, "command: must begin with the name of a program"),
        ({"environment": ["A=b"]}, "environment: must be a list of names of variables"),
        ({"environment": ["Resourceserver_X"]}, "environment: must not contain Resourceserver_X: the settings of"),
        ({"user": "a b"}, "user: must be the name of a user of this machine"),
        ({"shared": "yes"}, "shared: must be true or false"),
        ({"ca_file": "a"}, "ca_file: is only for an upstream with url; remove it"),
        ({"credential": 1}, "credential: is only for an upstream with url; remove it"),
    ],
)
def test_a_problem_of_a_program_is_reported(change: Mapping[str, Any], problem: str) -> None:
    assert parse(f"{table('upstream', command=['npx'])}{SCOPES}")
    [reported] = refusal(f"{table('upstream', **{'command': ['npx'], **change})}{SCOPES}")
    assert reported.startswith(f"upstream.{problem}")


HEADER = {"header": "X-Api-Key", "file": "key"}
CLIENT = {"issuer": "https://auth.example.com", "file": "client.json"}


@pytest.mark.parametrize(
    ("valid", "change", "problem"),
    [
        (HEADER, {"header": "X Api"}, "header: must be the name of a header, such as X-Api-Key"),
        (HEADER, {"header": "host"}, "header: must not be host: the gateway sets this header itself"),
        (HEADER, {"header": "Content-Length"}, "header: must not be Content-Length"),
        (HEADER, {"header": "MCP-Protocol-Version"}, "header: must not be MCP-Protocol-Version"),
        (HEADER, {"header": "gatehouse-caller"}, "header: must not be gatehouse-caller"),
        (HEADER, {"header": "Transfer-Encoding"}, "header: must not be Transfer-Encoding"),
        (HEADER, {"header": "Proxy-Authorization"}, "header: must not be Proxy-Authorization"),
        (HEADER, {"file": ""}, "file: must be the name of a file"),
        (HEADER, {"client_id": "a"}, "client_id: is only for a credential with issuer; remove it"),
        (CLIENT, {"header": "X-Api-Key"}, "header: a credential has either header or issuer; remove one of them"),
        (CLIENT, {"issuer": "http://auth.example.com"}, "issuer: must be https; plain http is for loopback"),
        (CLIENT, {"client_id": ""}, "client_id: must be a string of 1 to 256 printable ASCII characters"),
        (CLIENT, {"resource": "tools"}, "resource: A resource is an absolute https URI"),
        (CLIENT, {"secret": "hunter2"}, "secret: there is no such key; use one of: issuer, file, client_id, resource"),
    ],
)
def test_a_problem_of_a_credential_is_reported(
    valid: Mapping[str, Any], change: Mapping[str, Any], problem: str
) -> None:
    assert parse(f"{HTTP}{table('upstream.credential', **valid)}{SCOPES}")
    [reported] = refusal(f"{HTTP}{table('upstream.credential', **{**valid, **change})}{SCOPES}")
    assert reported.startswith(f"upstream.credential.{problem}")
    assert "hunter2" not in reported


@pytest.mark.parametrize(
    ("members", "problems"),
    [
        ({"scopes": []}, ["scopes: must be a list of declared scopes"]),
        ({"scopes": "notes:read"}, ["scopes: must be a list of declared scopes"]),
        ({"scopes": ["notes:raed"]}, ["scopes: the scope notes:raed is not declared; did you mean notes:read?"]),
        ({"any_valid_token": False}, ["any_valid_token: must be true; remove the key"]),
        ({"any_valid_token": 1}, ["any_valid_token: must be true"]),
        ({"any_valid_token": True, "scopes": ["notes:read"]}, ["scopes: a tool has either scopes or any_valid_token"]),
        ({"deny": True, "scopes": ["notes:read"]}, ["scopes: has no effect beside deny; remove one of them"]),
        ({"deny": True, "digest": DIGEST}, ["digest: has no effect beside deny; remove one of them"]),
        ({"deny": False}, ["deny: must be true; remove the key"]),
        ({"scopes": ["notes:read"], "digest": DIGEST.upper()}, ["digest: must be sha256: and 64 hexadecimal digits"]),
        ({"scopes": ["notes:read"], "digest": DIGEST[:-1]}, ["digest: must be sha256: and 64 hexadecimal digits"]),
        ({"scopes": ["notes:read"], "digest": f"{DIGEST}\\n"}, ["digest: must be sha256: and 64 hexadecimal digits"]),
        ({"scopes": ["notes:read"], "limit": "30"}, ["limit: must be NUMBER/second, NUMBER/minute or NUMBER/hour"]),
        ({"scopes": ["notes:read"], "limit": 30}, ["limit: must be a string such as 30/minute, or off"]),
        ({"scopes": ["notes:read"], "arguments": []}, ["arguments: must be tables such as"]),
        ({"scope": ["notes:read"]}, ["scope: there is no such key; did you mean scopes?", "scopes: is missing"]),
    ],
)
def test_a_problem_of_a_tool_is_reported(members: Mapping[str, Any], problems: list[str]) -> None:
    assert parse(f"{HTTP}{SCOPES}{table('tools.a', scopes=['notes:read'])}")
    reported = sorted(refusal(f"{HTTP}{SCOPES}{table('tools.a', **members)}"))
    assert len(reported) == len(problems)
    for one, problem in zip(reported, problems, strict=True):
        assert one.startswith(f"tools.a.{problem}")


@pytest.mark.parametrize("name", ["a b", "", "\u0430", "a" * 129])
def test_a_tool_needs_a_name_that_mcp_allows(name: str) -> None:
    [reported] = refusal(f'{HTTP}{SCOPES}[tools."{name}"]\nany_valid_token = true\n')
    assert "the name of a tool has 1 to 128 of the characters" in reported


def test_a_tool_is_a_table() -> None:
    assert refusal(f"{HTTP}{SCOPES}[tools]\na = 1\n") == ["tools.a: must be a table"]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({}, ": a rule needs a key: enum, pattern, max_length, minimum, maximum, required or claim"),
        ({"required": False}, ": a rule needs a key"),
        ({"enum": []}, ".enum: must be a list of 1 to 100 strings, numbers or booleans"),
        ({"enum": "a"}, ".enum: must be a list of 1 to 100 strings, numbers or booleans"),
        ({"enum": [[1]]}, ".enum: must contain only strings, finite numbers, true and false"),
        ({"pattern": "("}, ".pattern: must be a regular expression in the syntax of Rust's regex crate: unclosed"),
        ({"pattern": "a)|(b"}, ".pattern: must be a regular expression in the syntax of Rust's regex crate: unopened"),
        ({"pattern": "(?=a)"}, ".pattern: must be a regular expression in the syntax of Rust's regex crate: look"),
        ({"pattern": "a{1000000}"}, ".pattern: must be a regular expression in the syntax of Rust's regex crate: Comp"),
        ({"pattern": "a" * 1001}, ".pattern: must be a regular expression of at most 1000 characters"),
        ({"max_length": -1}, ".max_length: must be a whole number from 0 to 1048576"),
        ({"max_length": True}, ".max_length: must be a whole number from 0 to 1048576"),
        ({"minimum": "1"}, ".minimum: must be a finite number"),
        ({"maximum": True}, ".maximum: must be a finite number"),
        ({"maximum": float("nan")}, ".maximum: must be a finite number"),
        ({"minimum": 1, "max_length": 1}, ": no value is both a string (pattern, max_length) and a number"),
        ({"minimum": 2, "maximum": 1.5}, ": minimum is greater than maximum"),
        ({"claim": "roles"}, ".claim: roles is a reserved claim; choose another name"),
        ({"claim": "Workspace"}, ".claim: a claim name is lower case letters, digits and underscores"),
        ({"claim": 1}, ".claim: must be the name of a claim of the caller, such as workspace_id"),
        ({"claim": "sub", "required": True}, ".required: has no effect beside claim, which decides the value"),
        ({"max_lenght": 1}, ".max_lenght: there is no such key; did you mean max_length?"),
    ],
)
def test_a_problem_of_a_rule_is_reported(members: Mapping[str, Any], problem: str) -> None:
    tool = f"{HTTP}{SCOPES}{table('tools.a', any_valid_token=True)}"
    assert parse(f"{tool}{table('tools.a.arguments.b', max_length=1)}")
    assert refusal(f"{tool}{table('tools.a.arguments.b', **members)}")[0].startswith(f"tools.a.arguments.b{problem}")


def table(name: str, **members: Any) -> str:
    """Return a table of TOML."""
    return f"[{name}]\n" + "".join(f"{key} = {value(member)}\n" for key, member in members.items())


def value(member: Any) -> str:
    if isinstance(member, bool):
        return str(member).lower()
    if isinstance(member, list):
        return f"[{', '.join(map(value, member))}]"
    return f'"{member}"' if isinstance(member, str) else str(member)
