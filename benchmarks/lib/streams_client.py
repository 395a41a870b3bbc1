"""A client of streams that costs next to nothing: opens a connection for every body, asks all at once, and counts events without parsing them.

    python streams_client.py PORT PATH     reads a line of bodies, writes "ready", reads a line, writes {"seconds", "events", "cpu_seconds"}

It looks at its sockets every few milliseconds only: on a machine without a spare core what a client does in between is taken from the server.
"""

import json
import select
import socket
import sys
import time

REST = 0.003  # seconds between two looks
EVENT, END = b"data: {", b"0\r\n\r\n"


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def read_all(sockets: list[socket.socket]) -> int:
    """Events until every stream has ended. Raises SystemExit for a reply that is no stream."""
    poll, events = select.epoll(), 0
    open_sockets = {s.fileno(): s for s in sockets}
    tails, seen = dict.fromkeys(open_sockets, b""), dict.fromkeys(open_sockets, 0)
    for number in open_sockets:
        poll.register(number, select.EPOLLIN)
    while open_sockets:
        time.sleep(REST)
        for number, _ in poll.poll():
            data = open_sockets[number].recv(1 << 17)
            if not seen[number] and not data.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"no stream: {data[:500]!r}")
            seen[number] += len(data)
            events += (tails[number] + data).count(EVENT)  # also one that came in two parts: a tail is shorter than what is looked for
            tails[number] = (tails[number] + data[-6:])[-6:]
            if tails[number].endswith(END) or not data:
                poll.unregister(number)
                open_sockets.pop(number)
    return events


def main() -> None:
    port, path = int(sys.argv[1]), sys.argv[2]
    requests = [request(path, body) for body in json.loads(sys.stdin.readline())]
    sockets = [connect(port) for _ in requests]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    start, cpu = time.perf_counter(), time.process_time()
    for connection, data in zip(sockets, requests, strict=True):
        connection.sendall(data)
    events = read_all(sockets)
    told = {"seconds": time.perf_counter() - start, "events": events, "cpu_seconds": time.process_time() - cpu}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
