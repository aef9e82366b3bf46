"""The server at both ends of the world, and its visitors: cheap enough, beside three relays, not to be what is measured."""

import concurrent.futures
import contextlib
import socket
import threading
import time

BLOCK = memoryview(bytes(256 * 1024))
PATIENCE = 60


class Server:
    """Serves `GET /down/BYTES`, `/up/BYTES` (answered by one byte when all is there) and `/echo`."""

    def __init__(self, address):
        self.sock = socket.create_server(address, backlog=128)
        self.address = self.sock.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            conn, _ = self.sock.accept()
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    @staticmethod
    def _serve(conn):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with conn, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = conn.recv(1)
                if not byte:
                    return
                head += byte
            what, *size = head.split()[1].decode().strip("/").split("/")
            if what == "down":
                give(conn, int(size[0]))
            elif what == "up":
                take(conn, int(size[0]))
                conn.sendall(b"!")
            else:
                while data := conn.recv(4096):
                    conn.sendall(data)
            # Who closes with bytes unread resets the connection.
            conn.shutdown(socket.SHUT_WR)
            conn.recv(1)


def give(conn, size):
    while size:
        size -= conn.send(BLOCK[:size])


def take(conn, size):
    nowhere = bytearray(64 * 1024)
    while size:
        n = conn.recv_into(nowhere, min(size, len(nowhere)))
        if not n:
            raise ConnectionError("the stream ended early")
        size -= n


def visit(address, name, path):
    conn = socket.create_connection(address, timeout=PATIENCE)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    conn.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    return conn


def download(address, name, size):
    """Seconds from the dial to the last byte."""
    began = time.monotonic()
    with visit(address, name, f"/down/{size}") as conn:
        take(conn, size)
        return time.monotonic() - began


def upload(address, name, size):
    """Seconds from the dial until the server has said that all is there."""
    began = time.monotonic()
    with visit(address, name, f"/up/{size}") as conn:
        give(conn, size)
        take(conn, 1)
        return time.monotonic() - began


def several(number, transfer, *args):
    """Seconds that so many transfers take which begin at once."""
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        for job in [pool.submit(transfer, *args) for _ in range(number)]:
            job.result()
    return time.monotonic() - began
