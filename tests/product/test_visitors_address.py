"""Who a visitor is, for those who ask: HAProxy in front of the frontend, HAProxy as the origin, pagekite.py as either peer."""

import socket

import pytest

import haproxy_peer
from conftest import new_address
from island import VISITOR, Island, free_port
from kite import Backend, Frontend, Kite
from pagekite_peer import PagekiteBackend, PagekiteFrontend
from proc import wait_until
from traffic import Origin, Recorder, Stream, random_bytes

NAME = "web.alice.example"
REQUEST = b"GET / HTTP/1.1\r\nHost: %s\r\n%s\r\n"


def ask(address, request, source=VISITOR):
    """What a visitor is answered who half-closes, and the port that it came from."""
    with socket.create_connection(address, timeout=20, source_address=(source, 0)) as sock:
        port = sock.getsockname()[1]
        stream = Stream(sock)
        stream.send(request)
        stream.finish()
        return stream.read_to_end(), port


def body(answer):
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    return text.decode()


def up(sup, frontend, kite, via=None):
    """A backend that flies the kite there."""
    backend = Backend(sup, "backend", [via or frontend.pinned()], [kite]).start()
    frontend.wait_up(kite)
    return backend


@pytest.mark.parametrize("ip, source", [("10.77.1.9", VISITOR), ("[::1]", "::1")])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_as_the_origin(sup, kite, version, ip, source):
    """It reads the header, in either version and family, and takes the visitor for who it is."""
    origin = haproxy_peer.told(sup, f"127.0.0.1:{free_port()}")
    web = Kite("http", NAME, origin.address, proxy_protocol=version)
    frontend = Frontend(sup, "frontend", ip, [web], ports=(8080,)).start()
    up(sup, frontend, web, frontend.pinned(port=8080))
    answer, port = ask((ip.strip("[]"), 8080), REQUEST % (NAME.encode(), b"Connection: close\r\n"), source)
    authority = NAME if version == "v2" else ""
    assert body(answer).startswith(f"{source} {port} 8080 authority={authority} for= number=0 "), answer


@pytest.mark.parametrize("word, version", [("send-proxy", "v2"), ("send-proxy-v2", "v1")])
def test_haproxy_in_front_and_behind(sup, kite, word, version):
    """From a load balancer through the tunnel, which comes through it as well, to the origin: one address all the way."""
    origin = haproxy_peer.told(sup, f"127.0.0.1:{free_port()}")
    web = Kite("http", NAME, origin.address, proxy_protocol=version, forwarded_headers=True)
    ip, front, inner = new_address(), new_address(), new_address()
    frontend = Frontend(sup, "frontend", ip, [web], ports=(80,), behind=[inner]).start()
    haproxy_peer.balancer(sup, f"{front}:8000", inner, f"{ip}:80", word)
    up(sup, frontend, web, frontend.pinned(host=front, port=8000))
    answer, port = ask((front, 8000), REQUEST % (NAME.encode(), b"X-Forwarded-For: 9.9.9.9\r\n"))
    authority = NAME if version == "v2" else ""
    assert body(answer) == (f"{VISITOR} {port} 80 authority={authority} for={VISITOR} number=1 proto=http port=80 "
                            f"host={NAME}")
    # The log, too, knows who the backend is, and not only who stands before it.
    assert frontend.tunnel_peers() and inner not in frontend.tunnel_peers()
    # Past the balancer nobody gets in, with or without a header.
    for first in (b"", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"):
        with Stream.visit((ip, 80)) as stream:
            try:
                stream.send(first + REQUEST % (NAME.encode(), b""))
                assert stream.read_to_end() == b""
            except ConnectionError:
                pass
    frontend.proc.wait_log("was refused: it is not from a load balancer in proxy_from", 5)


def test_what_is_behind_the_header_is_the_visitors(sup, kite):
    """Raw bytes and foolscap's, through an HAProxy that takes the header off. The node is found behind it, too."""
    with Recorder(Island()) as recorder:
        wrapped = haproxy_peer.unwrapping(sup, f"127.0.0.1:{free_port()}", recorder.address)
        kites = [Kite("raw", NAME, wrapped.address, proxy_protocol="v2"),
                 Kite("foolscap", "node.alice.example", wrapped.address, proxy_protocol="v1")]
        frontend = Frontend(sup, "frontend", new_address(), kites).start()
        backend = Backend(sup, "backend", [frontend.pinned()], kites).start()
        backend.wait_line(r"node.alice.example: the origin .* speaks foolscap")
        for k in kites:
            frontend.wait_up(k)
        data = random_bytes(1, 300_000)
        recorder.expect(lambda stream: (stream.read(len(data)), stream.send(b"done"), stream.finish()))
        with Stream.visit(frontend.visitors) as visitor:
            visitor.send(b"CONNECT %s:22 HTTP/1.1\r\n\r\n" % NAME.encode())
            visitor.read_until(b"\r\n\r\n")
            visitor.send(data)
            assert visitor.read(4) == b"done"
        assert bytes(recorder.result().got) == data

        tub = "b" * 32
        opening = (b"GET /id/%s HTTP/1.1\r\nHost: node.alice.example\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
                   % tub.encode())
        recorder.expect(lambda stream: (stream.read(len(opening)), stream.finish()), tub)
        with Stream.visit(frontend.visitors) as visitor:
            visitor.send(opening)
            visitor.read_to_end()
        assert bytes(recorder.result().got) == opening


def test_a_second_request_finds_no_origin(sup, kite):
    """What a visitor claims in a second request on the same connection reaches nobody: the origin has hung up."""
    origin = haproxy_peer.told(sup, f"127.0.0.1:{free_port()}", accept_proxy=False)
    web = Kite("http", NAME, origin.address)
    frontend = Frontend(sup, "frontend", new_address(), [web]).start()
    backend = up(sup, frontend, web)
    forged = REQUEST % (NAME.encode(), b"Connection: keep-alive\r\nX-Forwarded-For: 9.9.9.9\r\n")

    # Untouched, both requests arrive, and say what the visitor likes. (A HAProxy that hears of the end of the
    # visitor's half before it looks at the second request hangs up.)
    def both():
        answer, _ = ask(frontend.visitors, forged + forged)
        return answer.count(b"HTTP/1.1 200 ") == answer.count(b"for=9.9.9.9 number=1 ") == 2

    wait_until(both, 10, "two answers")
    web.more["forwarded_headers"] = True
    assert "another forwarded_headers" in backend.reload()
    # The tunnel hears of it a moment later than we do.
    wait_until(lambda: ask(frontend.visitors, forged + forged)[0].count(b"HTTP/1.1 ") == 1, 10, "one answer")
    answer, _ = ask(frontend.visitors, forged + forged)
    assert answer.count(b"HTTP/1.1 ") == 1 and b"9.9.9.9" not in answer, answer
    assert f"for={VISITOR} number=1 " in body(answer)


class Echo(Origin):
    """Answers an HTTP request with its own head."""

    def __init__(self):
        super().__init__(Island(), self.answer)

    @staticmethod
    def answer(stream):
        head = stream.read_until(b"\r\n\r\n")
        stream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(head), head))
        stream.finish()


@pytest.mark.parametrize("ip, source", [("10.77.1.8", VISITOR), ("[::]", VISITOR), ("[::]", "::1")])
def test_pagekites_backend_tells_what_our_frontend_tells(sup, kite, ip, source):
    """Its header lines have the visitor's address, in whichever family it came."""
    with Echo() as origin:
        web = Kite("http", NAME, origin.address)
        frontend = Frontend(sup, "frontend", ip, [web], ports=(8080,)).start()
        # It can dial IPv4 alone.
        near = "127.0.0.1" if ip == "[::]" else ip
        frontend.ip = near
        PagekiteBackend(sup, "backend", frontend, [web], reach=[f"--frontend={near}:8080", "--new"]).start()
        frontend.wait_up(web, timeout=30)
        to = "::1" if source == "::1" else near
        answer, _ = ask((to, 8080), REQUEST % (NAME.encode(), b"X-Forwarded-For: 9.9.9.9\r\n"), source)
        assert body(answer) == (f"GET / HTTP/1.1\r\nX-Forwarded-For: {source}\r\nX-Forwarded-Proto: http\r\n"
                                f"X-PageKite-Port: 8080\r\nHost: {NAME}\r\nX-Old-X-Forwarded-For: 9.9.9.9\r\n\r\n")


def test_our_backend_tells_what_pagekites_frontend_tells(sup, kite):
    origin = haproxy_peer.told(sup, f"127.0.0.1:{free_port()}")
    web = Kite("http", NAME, origin.address, proxy_protocol="v2", forwarded_headers=True)
    frontend = PagekiteFrontend(sup, "frontend", new_address(), [web]).start()
    backend = Backend(sup, "backend", [frontend.plain()], [web]).start()
    backend.wait_up(web, frontend.ip)
    answer, port = ask(frontend.visitors, REQUEST % (NAME.encode(), b""))
    assert body(answer).startswith(f"{VISITOR} {port} 80 authority={NAME} for={VISITOR} number=1 proto=http port=80 ")
