"""A DNS server that says who may fly (protocol page §12): twisted.names, with one zone that is computed.

Run as `python dns_authority.py IP PORT`; it listens on UDP and TCP, and writes each question down.
The secrets are below; the signature is checked here, and nobody else knows them.
"""

import hashlib
import sys

SUFFIX = "auth.example"
SECRETS = {"dns.bob.example": "a-secret-of-the-dns", "poor.bob.example": "another-one", "_any_.wild.example": "a-third"}
QUOTA_KB = {"dns.bob.example": 4096, "poor.bob.example": 0, "_any_.wild.example": 1 << 20}


def sign(secret, payload, token):
    return token + hashlib.sha1((secret + payload + token).encode()).hexdigest()[:36 - len(token)]


def verdict(question):
    """The address in the answer, and the alias in front of it."""
    bsalt, fsalt, signature, proto, kite = question.removesuffix("." + SUFFIX).split(".", 4)
    if kite not in SECRETS:
        return "255.255.255.0", None
    name = kite.replace("_any_", "*")
    if sign(SECRETS[kite], f"{proto}:{name}:{bsalt}:{fsalt}", signature[:8]) != signature:
        return "255.255.255.1", "signature.x.0.0.no.example"
    quota = QUOTA_KB[kite]
    return ".".join(str(quota >> shift & 255) for shift in (24, 16, 8, 0)), "ok-5-3c.x.1e.64.yes.example"


def main(ip, port):
    from twisted.internet import reactor
    from twisted.names import dns, error, server

    class Zone:
        def query(self, query, timeout=None):
            from twisted.internet import defer
            name = query.name.name.decode().lower()
            print(f"asked for {name}", flush=True)
            if not name.endswith("." + SUFFIX) or query.type != dns.A:
                return defer.fail(error.DomainError())
            address, alias = verdict(name)
            records = [dns.RRHeader(alias or name, dns.A, dns.IN, 1, dns.Record_A(address, 1))]
            if alias:
                records.insert(0, dns.RRHeader(name, dns.CNAME, dns.IN, 1, dns.Record_CNAME(alias, 1)))
            return defer.succeed((records, [], []))

    factory = server.DNSServerFactory(clients=[Zone()])
    reactor.listenUDP(port, dns.DNSDatagramProtocol(factory), interface=ip)
    reactor.listenTCP(port, factory, interface=ip)
    print("ready", flush=True)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
