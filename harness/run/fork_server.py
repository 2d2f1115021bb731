"""The local executor: one fork server, a fresh interpreter in a session of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from ..measure.tasks import FORWARD_ONLY, READY, Reply, Task
from .executor import ServerError

#: A server that has not answered this long after the worker's deadline is stuck.
GRACE_S = 15.0
#: torch's import takes 1 to 2 s, and much longer from a cold disk.
START_S = 180.0


class ForkServer:
    """Starts when made, with this interpreter and environment unless others are given; sooner where no pass is backward.

    Errors: `ServerError` if the interpreter ends or takes too long.
    """

    def __init__(
        self, python: str = sys.executable, environment: Mapping[str, str] | None = None, *, forward_only: bool = False
    ) -> None:
        begin = time.perf_counter()
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        except OSError as error:
            raise ServerError(f"a fork server could not be given a file for its messages: {error}") from error
        try:
            # -P: the current folder must not stand in for installed modules. A session of its own: Ctrl-C reaches only us.
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, or the one of an arm that a gate made
                [python, "-P", "-m", "attnbench.harness.measure.server", *[FORWARD_ONLY] * forward_only],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
                bufsize=0,
                env=environment,
            )
        except OSError as error:
            self._log.close()
            raise ServerError(f"a fork server could not be started: {error}") from error
        self._buffer = b""
        self.pid = self._process.pid
        try:
            line = self._read_line(START_S)
        except BaseException:
            self.close()
            raise
        if line != READY:
            self.close()
            raise ServerError(f"a fork server answered {line[:200]!r} instead of being ready")
        self.start_s = time.perf_counter() - begin

    def run(self, task: Task, deadline_s: float) -> Reply:
        """Send a task and wait for its worker's end. Errors: `ServerError`."""
        request = json.dumps({"deadline_s": deadline_s, "task": task.model_dump(mode="json")}) + "\n"
        assert self._process.stdin is not None
        try:
            data = request.encode()
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]
        except OSError as error:
            raise ServerError(self._epitaph()) from error
        return Reply.model_validate_json(self._read_line(deadline_s + GRACE_S))

    def close(self) -> None:
        """End the server; its worker ends with it."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.kill()
            process.wait()
        self._log.close()

    def kill(self) -> None:
        """End the server at once, and its worker with it."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()

    def _read_line(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self.kill()
                raise ServerError(f"a fork server did not answer within {timeout_s:.0f} s")
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise ServerError(self._epitaph())
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def _epitaph(self) -> str:
        try:
            end = f"ended with code {self._process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            self.kill()
            end = "closed its end of the pipe and did not end"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        reason = f": {lines[-1]}" if lines else ""
        return f"a fork server {end}{reason}"
