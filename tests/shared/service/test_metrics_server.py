"""The process that serves /metrics, and the folder in which the workers count."""

import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_stack import free_port

# Imported here, before a test sets the variable that the library reads when it is imported.
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from support.waiting import wait_until

from gatehouse.shared.service import metrics_process, metrics_server
from gatehouse.shared.service.metrics_process import MetricsProcess
from gatehouse.shared.service.metrics_server import FOLDER, MetricsServer


@pytest.fixture
def bind(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address; the variable of the folder is put back after the test."""
    monkeypatch.setenv(FOLDER, "")
    return f"127.0.0.1:{free_port()}"


def write(folder: Path, file: str, name: str, value: float) -> None:
    """Write a time series as the library does in a worker."""
    values = MmapedDict(str(folder / file))
    values.write_value(mmap_key(name.removesuffix("_total"), name, [], [], "help"), value, 0.0)
    values.close()


def get(bind: str, path: str = "/metrics") -> tuple[int, str]:
    """Return the status and the body of a response; 0 if no server listens."""
    try:
        with urllib.request.urlopen(f"http://{bind}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


# The folder


def test_the_folder_is_private_and_named_to_the_workers(tmp_path: Path, bind: str) -> None:
    process = MetricsProcess("authserver", bind, str(tmp_path))
    folder = Path(os.environ[FOLDER])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    process.stop()
    assert not folder.exists()


def test_a_start_removes_the_folder_of_a_killed_server(tmp_path: Path, bind: str) -> None:
    killed = MetricsProcess("authserver", bind, str(tmp_path))
    left = Path(os.environ[FOLDER])
    write(left, "counter_7.db", "calls_total", 5)
    running = MetricsProcess("authserver", bind, str(tmp_path))
    assert list(left.iterdir()), "one that is in use is kept"
    os.close(killed._descriptor)
    other = MetricsProcess("resourceserver", bind, str(tmp_path))
    assert left.exists(), "each server has its own"
    last = MetricsProcess("authserver", bind, str(tmp_path))
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 3
    for process in (running, other, last):
        process.stop()
    assert not list(tmp_path.iterdir())


@pytest.mark.threat("T-162")
@pytest.mark.parametrize("kind", ["a folder", "a folder of another user", "a link", "a file"])
def test_what_others_create_prevents_no_start(
    tmp_path: Path, bind: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-377: the attacker knows everything but the random part of the name, and has seen an earlier one."""
    MetricsProcess("authserver", bind, str(tmp_path)).stop()
    known, elsewhere = Path(os.environ[FOLDER]), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    for name in (known.name, known.name.rpartition("-")[0], f"{known.name.rpartition('-')[0]}-"):
        planted = tmp_path / name
        if kind == "a file":
            planted.touch()
        elif kind == "a link":
            planted.symlink_to(elsewhere)
        else:
            planted.mkdir()
            planted.chmod(0o777)
    if kind == "a folder of another user":
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    process = MetricsProcess("authserver", bind, str(tmp_path))
    folder = Path(os.environ[FOLDER])
    assert folder != known
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (elsewhere / "file").exists()
    assert planted.exists() == (kind != "a folder"), "only folders of this user are removed"
    process.stop()


def test_an_ended_worker_loses_its_gauges_but_not_its_counts(tmp_path: Path, bind: str) -> None:
    process = MetricsProcess("authserver", bind, str(tmp_path))
    folder = Path(os.environ[FOLDER])
    for file in ("counter_7.db", "gauge_livesum_7.db", "gauge_livesum_8.db", "gauge_max_7.db"):
        write(folder, file, "name", 1)
    process.forget(7)
    assert {path.name for path in folder.iterdir()} == {"counter_7.db", "gauge_livesum_8.db", "gauge_max_7.db"}


# The process


def test_the_process_serves_until_it_is_stopped_and_is_started_again(tmp_path: Path, bind: str) -> None:
    process, now = MetricsProcess("authserver", bind, str(tmp_path)), [0.0]

    def supervise() -> None:
        process.supervise(lambda: now[0])

    try:
        supervise()
        first = process._process
        assert first is not None
        write(Path(os.environ[FOLDER]), "counter_7.db", "calls_total", 5)
        wait_until(lambda: get(bind)[0] == 200)
        assert "calls_total 5.0" in get(bind)[1]
        supervise()
        assert process._process is first
        first.send_signal(signal.SIGKILL)
        first.wait()
        supervise()
        assert process._process is first, "not started again within five seconds"
        now[0] = 5.0
        supervise()
        wait_until(lambda: get(bind)[0] == 200)
    finally:
        process.stop()
    assert get(bind)[0] == 0


def test_a_process_that_does_not_end_is_killed(tmp_path: Path, bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_process, "_STOP_TIMEOUT", 0.01)
    process = MetricsProcess("authserver", bind, str(tmp_path))
    # A process inherits what its parent ignores.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        process.supervise()
    finally:
        signal.signal(signal.SIGTERM, before)
    child = process._process
    assert child is not None
    process.stop()
    assert child.wait() == -signal.SIGKILL


def test_a_server_goes_on_if_the_process_cannot_be_started(
    tmp_path: Path, bind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = MetricsProcess("authserver", bind, str(tmp_path))
    with monkeypatch.context() as without_python:
        without_python.setattr(sys, "executable", str(tmp_path / "no-python"))
        process.supervise()
    assert "cannot be started: No such file or directory" in caplog.text
    process.stop()


def test_the_process_gets_no_setting(tmp_path: Path, bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHSERVER_SEALING_KEY", "secret")
    process = MetricsProcess("authserver", bind, str(tmp_path))
    process.supervise()
    child = process._process
    assert child is not None
    try:
        wait_until(lambda: FOLDER.encode() in Path(f"/proc/{child.pid}/environ").read_bytes())
        assert b"AUTHSERVER" not in Path(f"/proc/{child.pid}/environ").read_bytes()
    finally:
        process.stop()


# The server


@pytest.fixture
def server(tmp_path: Path, bind: str) -> Iterator[str]:
    """A server in a thread of this process, with the address that it listens on."""
    with MetricsServer(bind, str(tmp_path), os.getppid()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield bind
        server.shutdown()
        thread.join()


def test_only_metrics_are_served(server: str, tmp_path: Path) -> None:
    write(tmp_path, "counter_7.db", "calls_total", 5)
    write(tmp_path, "counter_8.db", "calls_total", 2)
    status, body = get(server)
    assert status == 200
    assert "# TYPE calls_total counter" in body
    assert "calls_total 7.0" in body
    assert get(server, "/metrics?name=x")[0] == 200
    for path in ("/", "/metrics/", "/token", "/livez"):
        assert get(server, path)[0] == 404
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{server}/metrics", data=b"")
    refused.value.close()
    assert refused.value.code == 501


def test_a_file_that_is_being_created_fails_one_scrape(server: str, tmp_path: Path) -> None:
    (tmp_path / "counter_7.db").write_bytes(b"")
    assert get(server)[0] == 503
    (tmp_path / "counter_7.db").unlink()
    assert get(server)[0] == 200


def test_the_server_listens_on_ipv6(tmp_path: Path, bind: str) -> None:
    address = f"[::1]:{bind.rpartition(':')[2]}"
    with MetricsServer(address, str(tmp_path), os.getppid()) as server:
        assert server.socket.getsockname()[0] == "::1"


def test_the_server_ends_with_its_parent(tmp_path: Path, bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["-c", bind, "1" if os.getppid() != 1 else "2"])
    with pytest.raises(SystemExit):
        metrics_server.main()
