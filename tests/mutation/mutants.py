"""Breaks the security core, one line at a time, and checks that the tests notice (`make mutants`).

Each mutant changes one line in a copy of the sources and runs the tests named for it. The tests must pass on the
unchanged copy and fail on every mutant. The exit code is 1 if a mutant survives, or if a line that it changes is not
in its file exactly once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("authserver", "resource", "shared")
FOLDERS = ("tests", "examples", "docs")
FILES = ("README.md", "pyproject.toml")

AUTHSERVER = "authserver/gatehouse/authserver"
GATEWAY = "resource/gatehouse/resourceserver"
PROTOCOL = "shared/gatehouse/shared/protocol"


@dataclass(frozen=True)
class Mutant:
    """A change of one line."""

    file: str
    old: str
    new: str
    tests: str

    def apply(self, folder: Path) -> str:
        """Write the changed file, and return its original text. Raises SystemExit if the line is not there once."""
        path = folder / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            sys.exit(f"{self.file} holds this {text.count(self.old)} times, not once: {self.old}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return text


MUTANTS = [
    # The gate admits a call, or a read, that the policy forbids.
    Mutant(
        f"{GATEWAY}/bearer/gate.py",
        "if not isinstance(decided, policy.Allowed):",
        "if isinstance(decided, policy.Unknown):",
        "tests/resourceserver/test_gate.py",
    ),
    Mutant(
        f"{GATEWAY}/bearer/gate.py",
        "if not isinstance(read, policy.Allowed):",
        "if isinstance(read, policy.Unknown):",
        "tests/resourceserver/test_mcp_resources.py",
    ),
    # The verifier accepts another kind of token, a revoked key, a revoked token.
    Mutant(
        f"{GATEWAY}/bearer/verifier.py",
        "if header.typ != ACCESS_TOKEN_TYPE:",
        "if header.typ is None:",
        "tests/attacks/test_access_tokens.py",
    ),
    Mutant(
        f"{GATEWAY}/bearer/verifier.py",
        "if key is None or key.thumbprint != verified.thumbprint:",
        "if key is None:",
        "tests/resourceserver/test_verifier.py",
    ),
    Mutant(
        f"{GATEWAY}/bearer/verifier.py",
        "if (reason := await self._statuses.refusal(verified.claims.status)) is not None:",
        'if (reason := await self._statuses.refusal(verified.claims.status)) == "":',
        "tests/resourceserver/test_verifier.py tests/resourceserver/test_status.py",
    ),
    # The policy accepts one of several required scopes, or ignores the hierarchy.
    Mutant(
        f"{GATEWAY}/policy.py",
        "return target.scopes <= held",
        "return not target.scopes or not target.scopes.isdisjoint(held)",
        "tests/resourceserver/test_policy.py",
    ),
    Mutant(
        f"{GATEWAY}/policy.py",
        "if _suffices(catalogue.closure(claims.scope), target):",
        "if _suffices(frozenset(claims.scope), target):",
        "tests/resourceserver/test_policy.py",
    ),
    # Dispatch relies on the gate, for a tool and for a resource.
    Mutant(
        f"{GATEWAY}/dispatch/tools.py",
        "if isinstance(decision, policy.Allowed):",
        "if decision := policy.Allowed(self._catalogue.tools[tool_name]):",
        "tests/resourceserver/test_dispatch.py",
    ),
    Mutant(
        f"{GATEWAY}/dispatch/resources.py",
        "if isinstance(decision, policy.Allowed):",
        "if decision := policy.Allowed(self._catalogue.resources[uri]):",
        "tests/resourceserver/test_dispatch.py tests/resourceserver/test_mcp_resources.py",
    ),
    # The resource server trusts a stale status list.
    Mutant(
        f"{GATEWAY}/bearer/status.py",
        "now - known.issued_at <= self._max_age",
        "now - known.issued_at <= self._max_age + 60",
        "tests/resourceserver/test_status.py",
    ),
    # A token is valid at another resource, or too long; a restriction is ignored.
    Mutant(
        f"{PROTOCOL}/token_validation.py",
        "if claims.aud != resource:",
        'if claims.aud.rstrip("/") != resource:',
        "tests/attacks/test_access_tokens.py",
    ),
    Mutant(
        f"{PROTOCOL}/token_validation.py",
        "if now >= ends:",
        "if now > ends:",
        "tests/resourceserver/test_verifier.py",
    ),
    Mutant(
        f"{PROTOCOL}/token_validation.py",
        'if "cnf" in claims:',
        'if claims.get("cnf") == "":',
        "tests/attacks/test_access_tokens.py tests/shared/protocol/test_token_validation.py",
    ),
    # An assertion may name several audiences, be signed with an expired key, or be used twice.
    Mutant(
        f"{AUTHSERVER}/clients/assertions.py",
        "if not isinstance(audience, str) or audience not in audiences:",
        "if audiences.isdisjoint(audience if isinstance(audience, list) else [audience]):",
        "tests/authserver/test_private_key_jwt.py",
    ),
    Mutant(
        f"{AUTHSERVER}/clients/assertions.py",
        "if key.lifetime.is_inactive(now):",
        "if key.lifetime.revoked:",
        "tests/authserver/test_client_key_lifecycle.py",
    ),
    Mutant(
        f"{AUTHSERVER}/clients/assertions.py",
        "    if is_unused:",
        "    if is_unused is not None:",
        "tests/authserver/test_assertion_replay.py",
    ),
    # A platform token may be for several audiences, or be used again with another signature. A key of two trusted
    # issuers counts for both. A rule may identify no workload, two clients, or a client with a secret.
    Mutant(
        f"{AUTHSERVER}/workloads/verifier.py",
        "if isinstance(audience, list) and len(audience) == 1:",
        "if isinstance(audience, list) and audience:",
        "tests/authserver/test_platform_token_checks.py",
    ),
    Mutant(
        f"{AUTHSERVER}/workloads/authentication.py",
        'return hashlib.sha256(token.rpartition(".")[0].encode()).digest()',
        "return hashlib.sha256(token.encode()).digest()",
        "tests/authserver/test_platform_token_use.py",
    ),
    Mutant(
        f"{AUTHSERVER}/workloads/registry.py",
        "own = {kid: keys for kid, keys in issuer.keys.items() if keys[0].thumbprint not in shared}",
        "own = dict(issuer.keys)",
        "tests/authserver/test_trusted_issuers.py",
    ),
    Mutant(
        f"{AUTHSERVER}/workloads/rules.py",
        "if _identification(kind, normal) is None:",
        "if not normal:",
        "tests/authserver/test_trust_rules.py",
    ),
    Mutant(
        f"{AUTHSERVER}/workloads/rules.py",
        "if len(clients) > 1:",
        "if len(clients) > 2:",
        "tests/authserver/test_trust_rules.py",
    ),
    Mutant(
        f"{AUTHSERVER}/clients/authentication.py",
        "if client.token_endpoint_auth_method != WORKLOAD_IDENTITY:",
        'if client.token_endpoint_auth_method == "private_key_jwt":',
        "tests/authserver/test_workload_identity.py",
    ),
    # A secret is accepted at the moment of its expiry.
    Mutant(
        f"{AUTHSERVER}/credentials/lifecycle.py",
        "now >= self.expires_at)",
        "now > self.expires_at)",
        "tests/authserver/test_secret_lifecycle.py tests/authserver/test_client_key_lifecycle.py",
    ),
    # A revoked token's bit does not reach the published list, or its neighbour's does.
    Mutant(
        f"{AUTHSERVER}/tokens/status_lists.py",
        ".where(StatusListRow.list_id.in_(locked)).values(version=StatusListRow.version + 1)",
        ".where(StatusListRow.list_id.in_(locked)).values(version=StatusListRow.version)",
        "tests/authserver/test_status_lists.py tests/authserver/test_revocation.py",
    ),
    Mutant(
        f"{PROTOCOL}/status_list.py",
        "for index in (*range(start, min(first << 3, end)), *range(max(last << 3, start), end)):",
        "for index in (*range(start, min(first << 3, end)), *range(max(last << 3, start), end + 1)):",
        "tests/shared/protocol/test_status_list.py",
    ),
    # The token endpoint grants scopes that the client does not have, and a strict client more than it asked for.
    Mutant(
        f"{AUTHSERVER}/grants/client_credentials.py",
        "scope = requested & allowed",
        "scope = requested if requested & allowed else allowed & requested",
        "tests/authserver/test_resources_and_scopes.py",
    ),
    Mutant(
        f"{AUTHSERVER}/grants/client_credentials.py",
        "if not scope or (client.strict and scope != requested):",
        "if not scope:",
        "tests/authserver/test_resources_and_scopes.py",
    ),
    # `client explain` proposes more scopes than needed.
    Mutant(
        f"{AUTHSERVER}/grants/entitlements.py",
        "return hierarchy.minimal(needs - hierarchy.closure(held))",
        "return needs - hierarchy.closure(held)",
        "tests/authserver/test_entitlements.py",
    ),
    # An argument rule ignores an alias of the argument, another tenant, another type, or what surrounds a match.
    Mutant(
        f"{GATEWAY}/catalogue/argument_rules.py",
        "if not arguments.keys() <= properties.keys():",
        "if not properties:",
        "tests/attacks/test_argument_rules.py",
    ),
    Mutant(
        f"{GATEWAY}/catalogue/argument_rules.py",
        "if arguments[name] != injected[name]:",
        "if arguments[name] is None:",
        "tests/attacks/test_argument_rules.py",
    ),
    Mutant(
        f"{GATEWAY}/catalogue/argument_rules.py",
        "type(value) is type(allowed) and value == allowed",
        "value == allowed",
        "tests/attacks/test_argument_rules.py",
    ),
    Mutant(
        f"{GATEWAY}/catalogue/argument_rules.py",
        r'(pattern, rf"\A(?:{pattern})\z")',
        "(pattern,)",
        "tests/attacks/test_argument_rules.py",
    ),
    # The digest of a tool leaves out its annotations.
    Mutant(
        f"{GATEWAY}/catalogue/tool_digest.py",
        "rfc8785.dumps(dict(tool))",
        'rfc8785.dumps({name: value for name, value in tool.items() if name != "annotations"})',
        "tests/resourceserver/test_tool_digest.py",
    ),
    # The draft of a policy contains a description as it is, or a name that MCP does not allow.
    Mutant(
        f"{GATEWAY}/upstream/drafting.py",
        "return escape_invisible(text[:_SUMMARY])",
        "return text[:_SUMMARY]",
        "tests/attacks/test_policy_drafts.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/drafting.py",
        "for name, tool in tools.items() if TOOL_NAME.fullmatch(name)}",
        "for name, tool in tools.items() if name}",
        "tests/attacks/test_policy_drafts.py",
    ),
    # A confirmed policy is written without a second look, or over a file that has changed.
    Mutant(
        f"{GATEWAY}/cli/policy_confirm.py",
        "if edited is None or _parsed(edited, found.path) != expected:",
        "if edited is None:",
        "tests/resourceserver/test_policy_confirm.py",
    ),
    Mutant(
        "shared/gatehouse/shared/service/files.py",
        "if target.read_bytes() != old:",
        "if not old:",
        "tests/shared/service/test_files.py",
    ),
    # The authorization server lists a denied tool as one that any client may call.
    Mutant(
        f"{AUTHSERVER}/resources/catalogue.py",
        "if not _is_denied(name, tool)",
        "if _is_denied(name, tool) or True",
        "tests/authserver/test_catalogue_file.py",
    ),
    # The answer to another call, a call repeated although it may have run, a session of another caller.
    Mutant(
        f"{GATEWAY}/upstream/http/answer.py",
        "if answer.request_id != request_id:",
        "if answer.request_id == 0:",
        "tests/attacks/test_hostile_upstream.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/http/response.py",
        "426, 428, 431})",
        "426, 428, 431, 503})",
        "tests/resourceserver/test_upstream_http.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/http/http_upstream.py",
        "if _era(changed) == _era(connection):",
        "if changed is connection:",
        "tests/resourceserver/test_upstream_negotiation.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/http/session_store.py",
        "            raise SharedSession",
        "            return",
        "tests/resourceserver/test_upstream_sessions.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/http/session_key.py",
        'return compact_json(["gatehouse", "upstream_session", *purpose]).encode()',
        'return b""',
        "tests/resourceserver/test_session_key.py",
    ),
    # A program of two callers, one that outlives the gateway or gets its variables, an outcome that seems known.
    Mutant(
        f"{GATEWAY}/upstream/stdio/stdio_upstream.py",
        "self._session(None if self._shared else key)",
        "self._session(None)",
        "tests/resourceserver/test_upstream_stdio.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/stdio/launcher.py",
        "os.kill(0, signal.SIGKILL)",
        "os._exit(0)",
        "tests/resourceserver/test_program.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/stdio/launch.py",
        'return {"PATH": variables.get("PATH", os.defpath), **named}',
        'return {"PATH": os.defpath, **variables}',
        "tests/resourceserver/test_program.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/stdio/program.py",
        "OutcomeUnknown(reason) if request.line.begun else UpstreamUnavailable(reason)",
        "UpstreamUnavailable(reason)",
        "tests/resourceserver/test_program.py",
    ),
    Mutant(
        f"{GATEWAY}/upstream/stdio/owner_messages.py",
        "return bool(user == os.geteuid())",
        "return True",
        "tests/resourceserver/test_upstream_owner.py",
    ),
]


def run_tests(folder: Path, tests: list[str]) -> bool:
    """Return whether the tests pass with the sources of a folder."""
    paths = [str(folder / name) for name in SOURCES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest, "-k", "not postgresql", *tests],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in {0, 1}:
        sys.exit(f"pytest could not run the tests:\n{done.stdout}{done.stderr}")
    (folder / "pytest.log").write_text(done.stdout, encoding="utf-8")
    return done.returncode == 0


def main() -> int:
    """Run every mutant, and print one line for each."""
    with tempfile.TemporaryDirectory(prefix="gatehouse-mutants-") as name:
        folder = Path(name)
        for part in (*SOURCES, *FOLDERS):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        for part in FILES:
            shutil.copy2(ROOT / part, folder / part)
        for mutant in MUTANTS:
            (folder / mutant.file).write_text(mutant.apply(folder), encoding="utf-8")
        if not run_tests(folder, sorted({test for mutant in MUTANTS for test in mutant.tests.split()})):
            sys.exit(
                "The tests fail without any mutant:\n" + (folder / "pytest.log").read_text(encoding="utf-8")[-4000:]
            )
        missed = 0
        for number, mutant in enumerate(MUTANTS, start=1):
            original = mutant.apply(folder)
            caught = not run_tests(folder, mutant.tests.split())
            (folder / mutant.file).write_text(original, encoding="utf-8")
            missed += not caught
            print(f"{number:2} {'caught' if caught else 'MISSED'} {mutant.file}: {mutant.new}", flush=True)
    print(f"{len(MUTANTS) - missed} of {len(MUTANTS)} mutants were caught.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
