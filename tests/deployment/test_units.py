"""The systemd units, as systemd reads and judges them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from local_stack import BIN
from support.documents import ROOT

ANALYZE = shutil.which("systemd-analyze")
EXPOSURE = 2.0
"""The most that systemd may find open to attack, of 10. Below 3 is its second-best class, "OK"."""

pytestmark = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")


UNITS = {
    f"{server}-{drop_in}": (f"{server}.service", *names)
    for server in ("authserver", "resourceserver")
    for drop_in, names in {"alone": (), "limits": ["limits.conf"], "tls": [f"tls-{server}.conf"]}.items()
}
"""Files by the name of a case: the unit, and a drop-in."""


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit whose programs are installed, in one file with a drop-in, because offline systemd reads no others."""
    files = [ROOT / "deploy" / "systemd" / name for name in UNITS[request.param]]
    path = tmp_path / files[0].name
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    path.write_text(text.replace("/opt/gatehouse/bin", str(BIN)), encoding="utf-8")
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ANALYZE), *arguments], capture_output=True, text=True, check=False)


def test_systemd_finds_no_fault_in_a_unit(unit: Path) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=no", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_unit_leaves_little_open_to_attack(unit: Path) -> None:
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE * 10:.0f}", "--no-pager", unit)
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
