"""nginx of the distribution, with the configuration of deploy/."""

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from support.certificates import Authority
from support.documents import ROOT
from support.waiting import wait_until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

CONFIGURATION = """
user root;
pid {root}/run/nginx.master;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {root}/run/body;
    proxy_temp_path {root}/run/proxy;
    include {root}/etc/nginx/conf.d/*.conf;
}}
"""
"""The machine's own, which includes that of deploy/. `root` is a folder in place of the file system."""


def served_at(issuer: str, resource: str) -> dict[str, str]:
    """Return replacements for gatehouse.conf, so that nginx serves both names at addresses HOST:PORT of localhost."""
    listen = "listen 443 ssl;\n    server_name"
    return {
        f"{listen} auth.example.com": f"listen {issuer} ssl;\n    server_name localhost",
        f"{listen} mcp.example.com": f"listen {resource} ssl;\n    server_name localhost",
    }


class Nginx:
    """A running nginx. `replaced` are the texts of the files in deploy/nginx that differ on this machine."""

    def __init__(self, root: Path, upstreams: str, authority: Authority, replaced: Mapping[str, str]) -> None:
        tls = root / "etc" / "nginx" / "gatehouse" / "tls"
        for folder in (tls, root / "etc" / "nginx" / "conf.d", root / "run"):
            folder.mkdir(parents=True)
        for name in ("certificate.pem", "key.pem"):
            (tls / name).write_bytes(authority.server_file.read_bytes())
        for source, target in ((upstreams, "gatehouse/upstreams.conf"), ("gatehouse.conf", "conf.d/gatehouse.conf")):
            text = (ROOT / "deploy" / "nginx" / source).read_text(encoding="utf-8")
            for shown, actual in {**replaced, "/etc/": f"{root}/etc/"}.items():
                text = text.replace(shown, actual)
            (root / "etc" / "nginx" / target).write_text(text, encoding="utf-8")
        file = root / "etc" / "nginx" / "nginx.conf"
        file.write_text(CONFIGURATION.format(root=root), encoding="utf-8")
        self._log = root / "nginx.log"
        self._command = [str(NGINX), "-c", str(file), "-g", "daemon off;"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, port: int) -> None:
        """Start it, and wait until it listens on a port of 127.0.0.1."""
        with self._log.open("wb") as log:
            process = self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, self.log()

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def log(self) -> str:
        """Return its log."""
        return self._log.read_text(encoding="utf-8")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
