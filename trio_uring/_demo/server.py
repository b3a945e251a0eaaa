"""The demo's server, in its own process, so that CPU time and system calls are the server's alone.

    python -m trio_uring._demo.server STACK CPU [DIRECTORY]

Reads the list of files as one line of JSON from its standard input, prints {"port": ...}, serves
until its standard input ends (its parent closed it, or died), and prints its report. Start-up and
report are outside of `MARK_START` and `MARK_STOP`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import trio

import trio_uring

from .files import STACKS, File, Server

# Paths that do not exist: looking at one only makes a system call that strace can see.
MARK_START = "/trio_uring-demo-start"
MARK_STOP = "/trio_uring-demo-stop"


async def serve(stack_name: str, directory: Path, files: list[File]) -> None:
    """Serves until standard input ends."""
    stack = STACKS[stack_name]
    server = Server(stack, directory, files)
    listeners = await stack.open_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve_client, listeners)
        print(json.dumps({"port": listeners[0].socket.getsockname()[1]}), flush=True)
        cpu = time.process_time()
        os.access(MARK_START, os.F_OK)
        await trio.lowlevel.wait_readable(sys.stdin)
        os.access(MARK_STOP, os.F_OK)
        cpu = time.process_time() - cpu
        statistics = None
        if stack_name == "trio_uring":
            statistics = dataclasses.asdict(trio_uring.current_statistics())
        print(
            json.dumps({"cpu": cpu, "hung_up": server.hung_up, "statistics": statistics}),
            flush=True,
        )
        nursery.cancel_scope.cancel()


def main() -> None:
    """Runs the server that the command line asks for."""
    if sys.platform != "linux":
        raise AssertionError
    stack_name, cpu, directory = sys.argv[1:]
    if int(cpu) >= 0:
        os.sched_setaffinity(0, {int(cpu)})
    files = [
        File(name, size, bytes.fromhex(digest))
        for name, size, digest in json.loads(sys.stdin.readline())
    ]
    trio_uring.uninstall()  # trio's own are to be trio's own, whatever the environment says
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C also reaches the parent, which reports it
        trio.run(serve, stack_name, Path(directory), files)


if __name__ == "__main__":
    main()
