"""The images, built on a base of the distribution's packages, run with a read-only root."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack, Process
from support.documents import ROOT

BUILD_TIMEOUT = 900
PROGRAMS = ("buildah", "debootstrap")
USER = 65532

missing = [program for program in PROGRAMS if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to build without another user's set-up"),
]


class Images:
    """Images in a storage of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._storage = [
            "--root",
            str(folder / "storage"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            "overlay",
        ]

    def buildah(self, command: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            ["buildah", *self._storage, command, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT,
        )
        assert done.returncode == 0, f"buildah {command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def base(self) -> str:
        """Return an image with Python of the distribution. Skips the tests if this machine cannot make one."""
        root = self.folder / "base"
        packages = "ca-certificates,python3-venv"
        install = ["debootstrap", "--variant=minbase", f"--include={packages}", release(), str(root)]
        done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT)
        if done.returncode:
            pytest.skip(f"debootstrap makes no base here: {(done.stderr or done.stdout)[-300:]}")
        require_version_of(root)
        # In place of a compiler, which the build stage would install otherwise: the wheels are compiled already.
        (root / "usr/bin/cc").symlink_to("false")
        try:
            container = self.buildah("from", "scratch")
            self.buildah("add", "--quiet", container, root, "/")
            self.buildah("commit", "--quiet", container, "gatehouse-base")
        except AssertionError as failed:
            pytest.skip(f"buildah makes no image of a folder here: {str(failed)[-300:]}")
        shutil.rmtree(root)
        return "localhost/gatehouse-base"

    def build(self, target: str, base: str, wheels: Path) -> str:
        """Build a target from wheels that are here already, and return its image."""
        pip = self.folder / "pip.conf"
        pip.write_text("[global]\nno-index = true\nfind-links = /var/wheels\n")
        mounts = ("--volume", f"{wheels}:/var/wheels:ro", "--volume", f"{pip}:/etc/pip.conf:ro")
        options = ("--layers", "--format", "docker", "--build-arg", f"BASE={base}", "--target", target)
        self.buildah("build", *options, *mounts, "-f", "deploy/Containerfile", "-t", f"gatehouse-{target}", ".")
        return f"localhost/gatehouse-{target}"

    def mount(self, image: str) -> Path:
        """Return the root folder of a container of an image."""
        return Path(self.buildah("mount", self.buildah("from", image)))

    def close(self) -> None:
        """Remove everything, and what the storage has mounted."""
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
        for place in sorted((place for place in mounted if place.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(self.folder)

    def configuration(self, image: str) -> Any:
        """Return what an image says about how to run it."""
        return json.loads(self.buildah("inspect", "--type", "image", image))["Docker"]["config"]


def require_version_of(root: Path) -> None:
    """Skip the tests if Python in a root folder has another version than here: the wheels are for this one."""
    ask = ["chroot", str(root), "python3", "-c", "import sys; print(*sys.version_info[:2])"]
    version = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
    if version != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(f"the distribution has Python {'.'.join(version)}, and the wheels are for {sys.version_info[:2]}")


def release() -> str:
    """Return the release of Debian that this machine runs."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


_READ_ONLY = """
set -e
mount --make-rprivate /
root="$1" data="$2"
shift 2
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$data" "$root/data"
mount -o remount,bind,ro "$root"
cd /
inside='cd /data; if touch /probe 2> /dev/null; then exit 99; fi; exec "$@"'
exec chroot --userspec=USER:USER "$root" sh -c "$inside" sh "$@"
""".replace("USER", str(USER))


class Containers(LocalStack):
    """Both servers in the file systems of their images: read-only, except /data and /tmp."""

    roots: Mapping[str, Path]

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [
            "unshare",
            "--mount",
            "sh",
            "-c",
            _READ_ONLY,
            "sh",
            str(self.roots[arguments[0]]),
            str(self.folder),
            *arguments,
        ]

    @property
    def environment(self) -> dict[str, str]:
        servers = {name: value for name, value in super().environment.items() if "SERVER_" in name}
        return {**servers, "PATH": "/opt/gatehouse/bin:/usr/bin:/bin:/usr/sbin:/sbin"}

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(arguments), env=self.environment, capture_output=True, text=True, check=False
        )

    def _start(self, arguments: Sequence[str], log: int) -> Process:
        return subprocess.Popen(self.command(arguments), env=self.environment, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that the build installs."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["-c", "constraints.txt", "--wheel-dir", str(folder)]
    # The Redis client needs async-timeout with Python before 3.11.3, which Debian 12 has.
    packages = [".", "hatchling", "async-timeout"]
    subprocess.run([*pip, "wheel", *options, *packages], cwd=ROOT, check=True, timeout=BUILD_TIMEOUT)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    images = Images(tmp_path_factory.mktemp("images"))
    try:
        yield images
    finally:
        images.close()


@pytest.fixture(scope="module")
def built(images: Images, wheels: Path) -> dict[str, str]:
    """Both images by their targets."""
    base = images.base()
    return {target: images.build(target, base, wheels) for target in ("authserver", "resourceserver")}


@pytest.fixture(scope="module")
def containers(images: Images, built: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    folder = tmp_path_factory.mktemp("data")
    os.chown(folder, USER, USER)
    stack = Containers(folder, workers=1)
    stack.roots = {target: images.mount(image) for target, image in built.items()}
    yield stack
    stack.stop()


@pytest.mark.parametrize("target", ["authserver", "resourceserver"])
def test_an_image_runs_its_server_as_a_user_without_rights(images: Images, built: dict[str, str], target: str) -> None:
    configuration = images.configuration(built[target])
    assert configuration["User"] == f"{USER}:{USER}"
    assert configuration["Entrypoint"] == [target]
    assert configuration["Cmd"] == ["serve"]
    assert configuration["Healthcheck"]["Test"][:2] == ["CMD", "python3"]


@pytest.mark.parametrize("target", ["authserver", "resourceserver"])
def test_the_commands_work_with_a_read_only_root(containers: Containers, target: str) -> None:
    assert "version" in containers.run(target, "--version")
    assert "Usage: " in containers.run(target, "--help")


def test_the_servers_serve_with_a_read_only_root(containers: Containers, images: Images, built: dict[str, str]) -> None:
    stack = containers
    for server in ("authserver", "resourceserver"):
        stack.run(server, "init")
    stack.start_all()
    for server in ("authserver", "resourceserver"):
        stack.run(server, "check")
        assert "Traceback" not in stack.log(server)
        health = images.configuration(built[server])["Healthcheck"]["Test"][1:]
        port = {"authserver": stack.authserver_port, "resourceserver": stack.resourceserver_port}[server]
        code = health[-1].replace(":9000", f":{port}").replace(":8000", f":{port}")
        subprocess.run([*stack.command([server])[:-1], *health[:-1], code], env=stack.environment, check=True)
