"""UDP echo on the wildcard address of a host with several addresses.

    python examples/udp_wildcard.py

A server that is bound to 0.0.0.0 is reached at every address of its host, but its answers leave
from the one that the routes prefer, and a client that asked another address takes them for
somebody else's. With `local=True` each datagram comes with the address that it was sent to, and the
answer leaves from there. It asks itself at two addresses, by clients that take answers from the
address that they asked only, and ends. (Linux: the second address is 127.0.0.2.)
"""

import logging

import trio

import trio_uring

ADDRESSES = ("127.0.0.1", "127.0.0.2")
BURST = 100  # datagrams of a client
ANSWER_SECONDS = 10.0
log = logging.getLogger("server")


async def echo(udp: trio_uring.UDPSocket) -> None:
    """Answers all datagrams that are there with few system calls, until cancelled.

    Whatever happens to one client's datagrams, the others get their answers.
    """
    while True:
        datagrams = await udp.receive_many(local=True)
        while datagrams:
            try:
                await udp.send_many(datagrams)  # (data, where to, where from)
            except OSError as exc:
                refused = datagrams[udp.datagrams_sent]
                log.warning("%s cannot be answered: %s", refused[1], exc)
                datagrams = datagrams[udp.datagrams_sent + 1 :]
            else:
                break


async def ask(host: str, port: int) -> None:
    """A client: a connected socket takes datagrams from that address only."""
    async with await trio_uring.open_udp_socket(remote_address=(host, port)) as udp:
        missing = {b"%d" % number for number in range(BURST)}
        await udp.send_many(sorted(missing))
        try:
            with trio.fail_after(ANSWER_SECONDS):
                while missing:
                    missing -= {data for data, _ in await udp.receive_many()}
        except trio.TooSlowError:  # UDP may lose them
            pass
        print(f"{host} answered {BURST - len(missing)} of {BURST} datagrams")


async def main() -> None:
    async with await trio_uring.open_udp_socket(local_address=("0.0.0.0", 0)) as udp:
        port = udp.getsockname()[1]
        print(f"listening on 0.0.0.0:{port}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, udp)
            for host in ADDRESSES:
                await ask(host, port)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(format="%(name)s: %(message)s")
    trio.run(main)
