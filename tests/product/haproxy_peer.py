"""Debian's HAProxy: the program that the PROXY protocol comes from, on either side of kite."""

import itertools
import shutil

from proc import reachable, wait_until

_names = itertools.count(1)

# What an HTTP request's answer says: where HAProxy takes it to be from, which host the header named, and how
# the request itself says where it is from.
SEEN = ('%[src] %[src_port] %[dst_port] authority=%[fc_pp_authority] '
        'for=%[req.fhdr(x-forwarded-for)] number=%[req.hdr_cnt(x-forwarded-for)] '
        'proto=%[req.hdr(x-forwarded-proto)] port=%[req.hdr(x-forwarded-port)] host=%[req.hdr(host)]')


def binary():
    path = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/sbin")
    if not path:
        raise RuntimeError("the tests need HAProxy: apt-get install haproxy")
    return path


class HAProxy:
    """One process with one port; `address` is where it listens, `lines` say what it does there."""

    def __init__(self, sup, address, lines):
        name = f"haproxy-{next(_names)}"
        file = sup.directory / f"{name}.cfg"
        file.write_text("\n".join(["defaults", "  timeout connect 5s", "  timeout client 60s", "  timeout server 60s",
                                   "listen it", *(f"  {line}" for line in lines), ""]))
        self.proc = sup.spawn(name, [binary(), "-db", "-f", file])
        host, port = address.rsplit(":", 1)
        wait_until(lambda: reachable((host, int(port))), 15, lambda: f"{name} listens\n{self.proc.tail()}")
        self.address = address


def told(sup, address, accept_proxy=True):
    """An HTTP server that answers with what it has SEEN, and takes connections with a PROXY header alone."""
    return HAProxy(sup, address, [
        "mode http", f"bind {address}{' accept-proxy' if accept_proxy else ''}",
        f'http-request return status 200 content-type text/plain lf-string "{SEEN}"'])


def unwrapping(sup, address, to):
    """Takes a PROXY header off, and passes on what is behind it."""
    return HAProxy(sup, address, ["mode tcp", f"bind {address} accept-proxy", f"server origin {to}"])


def balancer(sup, address, source, to, word):
    """A load balancer, and the address that it comes from; `word` is `send-proxy` or `send-proxy-v2`."""
    return HAProxy(sup, address, ["mode tcp", f"bind {address}", f"source {source}", f"server kite {to} {word}"])
