"""The wheel contains everything that a server needs at run time."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEARCH = """
from gatehouse.directory import documentation
assert documentation.__file__.startswith({installed!r}), documentation.__file__
for section in documentation.search_docs("quickstart sealing key", 20).sections:
    print(section.file)
"""
INIT = "import {package}.cli as cli; print(cli.__file__, flush=True); cli.main(['init'])"


def test_both_servers_run_from_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("gatehouse-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith(("tests/", "keys/", "var/"))]
        archive.extractall(installed)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed)}
    for package in ("gatehouse.authserver", "gatehouse.resourceserver"):
        command = [sys.executable, "-c", INIT.format(package=package)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(installed))
    assert (tmp_path / "var" / "authserver.db").stat().st_size > 0
    assert (tmp_path / "var" / "resourceserver.db").stat().st_size > 0
    documents = {str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))}
    carried = installed / "gatehouse" / "directory" / "documents"
    assert {str(path.relative_to(carried)) for path in carried.rglob("*.md")} == documents
    search = [sys.executable, "-c", SEARCH.format(installed=str(installed))]
    found = subprocess.run(search, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert {"README.md", "docs/operations.md"} <= set(found.stdout.split())
    assert set(found.stdout.split()) <= documents
