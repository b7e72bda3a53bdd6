"""Several real `brise serve` processes behind HAProxy, with PostgreSQL as their store: each part can be stopped."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from brise.deploy import files
from brise.deploy.options import DeployOptions, ServerPlace
from gateway_process import Upstream

READY_S = 180.0
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or "haproxy"


class Postgres:
    """A server on a socket in its own folder, with fsync as it comes."""

    def __init__(self) -> None:
        self._programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self._user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="brise-pg-", dir="/tmp"))
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-D", self._folder / "data", "-U", "brise", "-A", "trust", "-E", "UTF8", "--locale=C")
        self.url = f"postgresql://brise@/postgres?host={self._folder}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-l", self._folder / "log", "-o",
                  f"-c listen_addresses='' -c unix_socket_directories={self._folder}", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-m", "fast", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *words: object) -> None:
        user = self._user
        subprocess.run([str(self._programs / program), *map(str, words)], stdout=subprocess.DEVNULL, check=True,
                       cwd="/", user=user and user.pw_uid, group=user and user.pw_gid,
                       extra_groups=[] if user else None)


class Server:
    """One `brise serve` on a port that stays its own over restarts."""

    def __init__(self, name: str, model: Path, home: Path, store: str, upstream_port: int,
                 options: Sequence[str]) -> None:
        self.name, self.port = name, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "brise", "serve", f"small={model}", "--port", str(self.port), "--threads", "1",
            "--log-level", "warning", "--upstream", f"http://127.0.0.1:{upstream_port}/v1", "--store", store,
            "--drain-seconds", "30", "--virtual-keys", "off", *options]
        self._home, self.log = home, list[str]()

    def start(self, wait: bool = True) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "BRISE_HOME": str(self._home)})
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        if wait:
            wait_until(lambda: status_of(f"{self.url}/readyz") == 200, f"{self.name} is not ready: {self.log[-5:]}")

    def end(self) -> int:
        """In order; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            del self.log[:-500]


class Cluster:
    """The servers, the balancer and what they need; `url` is the balancer's."""

    def __init__(self, model: Path, count: int, upstream: Upstream, options: Sequence[str] = ()) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="brise-replicas-"))
        self.postgres, self.upstream = Postgres(), upstream
        self.postgres.start()
        self.home = self._folder / "home"
        self.servers = [Server(f"s{number}", model, self.home, self.postgres.url, upstream.port, options)
                        for number in range(1, count + 1)]
        self.url = f"http://127.0.0.1:{free_port()}"
        self._balancer: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.servers[0].start()  # makes the keys
        for server in self.servers[1:]:
            server.start()
        places = [ServerPlace(server.name, "127.0.0.1", server.port) for server in self.servers]
        made = files.files_of(DeployOptions("haproxy", servers=places, bind=self.url.removeprefix("http://")))
        path = self._folder / "haproxy.cfg"
        path.write_text(made["haproxy.cfg"].replace("log stdout format raw local0 info", ""))
        self._balancer = subprocess.Popen([HAPROXY, "-f", str(path)], stderr=subprocess.DEVNULL)
        wait_until(lambda: status_of(f"{self.url}/readyz") == 200, "the balancer has no server")

    def stop(self) -> None:
        if self._balancer is not None:
            self._balancer.terminate()
            self._balancer.wait()
        for server in self.servers:
            if server.process.poll() is None:
                server.end()

    def remove(self) -> None:
        self.postgres.remove()
        shutil.rmtree(self._folder, ignore_errors=True)


def status_of(url: str) -> int:
    """The status of a GET; 0 if there is no answer."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    end_s = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > end_s:
            raise SystemExit(otherwise)
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
