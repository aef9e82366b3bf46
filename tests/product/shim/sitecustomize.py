"""Answers name look-ups from $KITE_TEST_HOSTS ("NAME=IP,*.NAME=IP"); all other names do not exist.

Python loads a module of this name at start, before anybody can import the
functions it replaces.  Numbers go to the real ones.
"""

import fnmatch
import os
import socket

HOSTS = [entry.split("=") for entry in os.environ.get("KITE_TEST_HOSTS", "").split(",") if entry]
_getaddrinfo = socket.getaddrinfo


def _is_number(host):
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return True
        except OSError:
            pass
    return False


def _resolve(host):
    name = host.decode("ascii") if isinstance(host, bytes) else host
    if not name or _is_number(name) or name == "localhost":
        return name
    for pattern, ip in HOSTS:
        if fnmatch.fnmatchcase(name.lower().rstrip("."), pattern):
            return ip
    raise socket.gaierror(socket.EAI_NONAME, f"{name} is not in KITE_TEST_HOSTS")


def getaddrinfo(host, *args, **kwargs):
    return _getaddrinfo(_resolve(host), *args, **kwargs)


def gethostbyname(host):
    return getaddrinfo(host, None, socket.AF_INET)[0][4][0]


socket.getaddrinfo = getaddrinfo
socket.gethostbyname = gethostbyname
