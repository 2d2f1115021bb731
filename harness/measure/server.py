"""The fork server: a fresh interpreter with torch imported and nothing run, which forks one worker a task.

Speaks lines of JSON: a request `{"deadline_s": ..., "task": {...}}` on standard input, a `Reply` on standard output.
It ends, and its worker with it, when its input ends: a killed parent leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

gc.disable()  # what imports leave behind is not worth searching for: that is a fifth of a start

import torch  # noqa: E402, F401 - imported once here, so that no worker has to
from pydantic import TypeAdapter  # noqa: E402

from .. import control_groups  # noqa: E402
from . import worker  # noqa: E402
from .tasks import FORWARD_ONLY, READY, Reply, Task  # noqa: E402

_TASK: TypeAdapter[Task] = TypeAdapter(Task)
#: What is kept of a worker's own output.
TAIL_BYTES = 2000
_READ_BYTES = 65536
#: A pipe holds 64 KiB, or what root made of it; more than this comes from someone who still writes.
_FULL_PIPE_READS = 16
_PR_SET_PDEATHSIG = 1


def main(*, forward_only: bool) -> None:
    """Serve until the input ends."""
    if not forward_only:
        # And sympy with it: torch imports them in a first backward pass, for 0.3 s.
        importlib.import_module("torch.fx.experimental.symbolic_shapes")
    requests, replies = _private_pipes()
    # Workers share the pages of what is imported by now, and do not search it.
    gc.freeze()
    gc.enable()
    _write_line(replies, READY)
    reader = _LineReader(requests)
    while (line := reader.next_line()) is not None:
        request = json.loads(line)
        task = _TASK.validate_python(request["task"])
        reply = _Worker.fork(task, close=(requests, replies)).wait(float(request["deadline_s"]), requests)
        if reply is None:
            return
        _write_line(replies, reply.model_dump_json())


def _private_pipes() -> tuple[int, int]:
    """Requests and replies on descriptors of their own; what anything prints goes nowhere."""
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return requests, replies


def _write_line(descriptor: int, text: str) -> None:
    data = text.encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


class _LineReader:
    """Whole lines from a descriptor, nothing read ahead that `select` would not see."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""

    def next_line(self) -> bytes | None:
        """The next line, or None at the end."""
        while b"\n" not in self._buffer:
            chunk = os.read(self._descriptor, _READ_BYTES)
            if not chunk:
                return None
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


@dataclass
class _Worker:
    """A forked worker, seen from the server: its result and its output as they arrive, and its end."""

    pid: int
    result_pipe: int
    output_pipe: int
    begin: float = field(default_factory=time.perf_counter)
    memory_kills: int = 0
    result: bytes = b""
    output: bytes = b""

    @classmethod
    def fork(cls, task: Task, close: tuple[int, ...]) -> _Worker:
        result_read, result_write = os.pipe()
        output_read, output_write = os.pipe()
        server = os.getpid()
        kills, begin = _memory_kills(), time.perf_counter()
        pid = os.fork()
        if pid == 0:
            for descriptor in (*close, result_read, output_read):
                os.close(descriptor)
            _be_worker(task, server, result_write, output_write)
        os.close(result_write)
        os.close(output_write)
        return cls(pid, result_read, output_read, begin, kills)

    def wait(self, deadline_s: float, requests: int) -> Reply | None:
        """Until the worker ends or its deadline passes; None when the parent is gone."""
        timed_out = False
        while not self._has_ended():
            left = self.begin + deadline_s - time.perf_counter()
            if left <= 0 and not timed_out:
                timed_out = True
                self._kill_group()
            if not self._pump(requests, max(0.0, min(left, 1.0)) if not timed_out else 0.05):
                self._kill_group()
                os.waitpid(self.pid, 0)
                return None
        self._kill_group()  # compilers and other children that outlived the worker
        self._drain()
        _, status = os.waitpid(self.pid, 0)
        return self._reply(status, timed_out=timed_out)

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _pump(self, requests: int, seconds: float) -> bool:
        """Wait for something to happen, reading what the worker sends; False when the parent is gone."""
        watched = [pipe for pipe in (self.result_pipe, self.output_pipe, requests) if pipe >= 0]
        with _ended_descriptor(self.pid) as ended:
            ready, _, _ = select.select([*watched, *ended], [], [], seconds if ended else min(seconds, 0.01))
        for pipe in ready:
            if pipe == requests:
                return False  # the parent sends nothing while it waits: this is its end
            if pipe in watched:
                self._read(pipe)
        return True

    def _read(self, pipe: int) -> bool:
        chunk = os.read(pipe, _READ_BYTES)
        if pipe == self.result_pipe:
            self.result += chunk
        else:
            self.output = (self.output + chunk)[-TAIL_BYTES:]
        if not chunk:
            os.close(pipe)
            if pipe == self.result_pipe:
                self.result_pipe = -1
            else:
                self.output_pipe = -1
        return bool(chunk)

    def _drain(self) -> None:
        """What the worker left in the pipes. A descendant that escaped the group may hold them open, and write for ever:
        neither their end is waited for, nor that they are empty.
        """
        for pipe in (self.result_pipe, self.output_pipe):
            for _ in range(_FULL_PIPE_READS):
                if pipe < 0 or not select.select([pipe], [], [], 0)[0] or not self._read(pipe):
                    break
        for pipe in (self.result_pipe, self.output_pipe):
            if pipe >= 0:
                os.close(pipe)

    def _kill_group(self) -> None:
        for kill in (os.killpg, os.kill):
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    def _reply(self, status: int, *, timed_out: bool) -> Reply:
        exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        killer = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        whole = self.result.endswith(b"\n") and exit_code == 0
        return Reply(
            result=self.result.decode().strip() if whole else None,
            signal=killer,
            exit_code=exit_code,
            timed_out=timed_out,
            killed_for_memory=killer == signal.SIGKILL and not timed_out and _memory_kills() > self.memory_kills,
            output_tail=self.output.decode(errors="replace").strip(),
            wall_s=time.perf_counter() - self.begin,
        )


class _ended_descriptor:  # noqa: N801 - reads as the `with` statement that it is for
    """A descriptor that becomes readable when a child ends, where the kernel has one; else nothing to watch."""

    def __init__(self, pid: int) -> None:
        self._descriptors: list[int] = []
        if hasattr(os, "pidfd_open"):
            try:
                self._descriptors = [os.pidfd_open(pid)]
            except OSError:
                self._descriptors = []

    def __enter__(self) -> list[int]:
        return self._descriptors

    def __exit__(self, *exc_info: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def _be_worker(task: Task, server: int, result_pipe: int, output_pipe: int) -> NoReturn:
    """The forked side: a process group of its own, output to the pipe, one result, and out."""
    code = 1
    try:
        os.setsid()
        _die_with(server)
        os.dup2(output_pipe, 1)
        os.dup2(output_pipe, 2)
        os.close(output_pipe)
        result = worker.perform(task)
        _write_line(result_pipe, result)
        code = 0
    except BaseException as error:  # noqa: BLE001 - the process ends here; whatever it was goes to the output's tail
        os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _die_with(parent: int) -> None:
    """Linux: be killed when the parent ends, however it ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _memory_kills() -> int:
    """How often the kernel has killed for memory so far, in the machine and in this control group."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        lines = []
    return control_groups.memory_kills() + sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


if __name__ == "__main__":
    main(forward_only=FORWARD_ONLY in sys.argv[1:])
    os._exit(0)  # nothing is left to be tidied up, and taking torch apart takes a quarter of a second
