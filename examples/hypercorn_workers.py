"""hypercorn with two workers, unchanged, with every one of them on io_uring.

    pip install hypercorn
    python examples/hypercorn_workers.py

It starts the server by its own command line, behind `python -m trio_uring run`, which also enables
the processes that the server starts; sends requests until both workers have answered; and stops the
server as an operator would. This module is the application, too.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [
    *(sys.executable, "-m", "trio_uring", "run", "-m", "hypercorn", "-k", "trio"),
    *("--workers", "2", "--bind", "127.0.0.1:0", f"{Path(__file__).stem}:app"),
]
SECONDS_MAX = 60.0


async def app(scope, receive, send):
    """An ASGI application that says which process answers, and what drives its streams."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    import trio_uring  # only to ask: the application needs no line for it

    said = {"process": os.getpid(), "backend": trio_uring.backend_info().backend}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def ask(port: int) -> dict:
    """A request on a connection of its own: the kernel gives it to one of the workers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return json.load(connection.getresponse())
    finally:
        connection.close()


def listening(server: subprocess.Popen) -> int:
    """Waits until the server says on which port it listens."""
    said = []
    for line in server.stderr:
        if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
        said.append(line)
    raise SystemExit(f"the server ended:\n{''.join(said)}")


def main() -> None:
    here = Path(__file__).parent
    with subprocess.Popen(COMMAND, cwd=here, stderr=subprocess.PIPE, text=True) as server:
        try:
            port = listening(server)
            print(f"listening on 127.0.0.1:{port}")
            workers, end = {}, time.monotonic() + SECONDS_MAX
            while len(workers) < 2 and time.monotonic() < end:
                said = ask(port)
                workers[said["process"]] = said["backend"]
            print(f"{len(workers)} workers have answered, on {', '.join({*workers.values()})}")
        finally:
            server.terminate()  # it ends its workers, which finish what they are doing
            try:
                server.communicate(timeout=SECONDS_MAX)
            except subprocess.TimeoutExpired:
                server.kill()
        print(f"the server has ended with exit status {server.returncode}")


if __name__ == "__main__":
    main()
