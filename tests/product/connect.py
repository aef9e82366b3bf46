"""A ProxyCommand for ssh: HOST PORT of a frontend, and whom to ask it for.  (netcat-openbsd's `nc -X connect` does the same.)"""

import os
import socket
import sys
import threading

frontend, port, host, its_port = sys.argv[1:]
conn = socket.create_connection((frontend, int(port)))
conn.sendall(f"CONNECT {host}:{its_port} HTTP/1.0\r\n\r\n".encode())
head = b""
while not head.endswith(b"\r\n\r\n"):
    byte = conn.recv(1)
    if not byte:
        sys.exit("the frontend closed")
    head += byte
if head.split()[1] != b"200":
    sys.exit(head.decode())


def up():
    while data := os.read(0, 65536):
        conn.sendall(data)
    conn.shutdown(socket.SHUT_WR)


threading.Thread(target=up, daemon=True).start()
while data := conn.recv(65536):
    while data:
        data = data[os.write(1, data):]
