"""Debian's pagekite.py as a frontend and as a backend.

What this version (1.5.2.201011) is known to do wrong, and what follows here:

* Its frontend dies of any TLS ClientHello (a str/bytes error ends its event
  loop), so TLS by SNI is tested with pagekite.py as the *backend* only.
* Its frontend drops a tunnel that sends PING, when secrets are static: a kite
  backend has to live with that, and these tests let it.
* Its backend writes X-Forwarded-For and friends into HTTP heads, unless
  `rawheaders` is set for the kite: set here where bytes are compared.
* The first visitor after an idle second waits for about another second.
"""

import shutil

from proc import wait_until


def binary():
    path = shutil.which("pagekite")
    if not path:
        raise RuntimeError("the tests need pagekite.py: apt-get install pagekite")
    return path


def _flags(sup, name):
    log = sup.directory / f"{name}-pagekite.log"
    return [binary(), "--clean", "--nullui", f"--logfile={log}", "--loglevel=debug"]


class PagekiteFrontend:
    """`plain()` and `visitors` as of kite.Frontend."""

    def __init__(self, sup, name, ip, kites, ports=(80,)):
        self.sup, self.name, self.ip, self.port = sup, name, ip, ports[0]
        self.argv = [*_flags(sup, name), "--isfrontend", f"--host={ip}", f"--ports={','.join(map(str, ports))}",
                     "--rawports=virtual", "--protos=http,http2,http3,https,raw,websocket,xmpp",
                     *sorted({f"--domain={k.wire}:{k.name}:{k.secret}" for k in kites})]

    def start(self):
        self.proc = self.sup.spawn(self.name, self.argv)
        wait_until(self._answers, 15, lambda: f"{self.name} listens\n{self.proc.tail()}", every=0.2)
        return self

    def _answers(self):
        from traffic import Visitor
        try:
            return Visitor(self.visitors, "nobody.example").ask("GET", "/", timeout=5)[0] == 503
        except OSError:
            return False

    def plain(self):
        return f"plain://{self.ip}:{self.port}"

    @property
    def visitors(self):
        return (self.ip, self.port)


class PagekiteBackend:
    """Serves its kites at one frontend, in the clear; `reach` are other flags that say which and how."""

    def __init__(self, sup, name, frontend, kites, machine=None, rawheaders=False, reach=None, env=None):
        self.sup, self.name, self.machine, self.env = sup, name, machine, env
        reach = reach or [f"--frontend={frontend.visitors[0]}:{frontend.visitors[1]}", "--new"]
        self.argv = [*_flags(sup, name), *reach]
        for k in kites:
            wire = f"{k.wire}/{k.port}" if k.port else k.wire
            self.argv.append(f"--service_on={wire}:{k.name}:{k.origin}:{k.secret}")
            if rawheaders:
                self.argv.append(f"--service_cfg={k.name}/80:rawheaders:True")

    def start(self):
        self.proc = self.sup.spawn(self.name, self.argv, machine=self.machine, env=self.env)
        return self

    def said(self):
        """Its log, and what it wrote where a user would see it."""
        return (self.sup.directory / f"{self.name}-pagekite.log").read_text() + self.proc.text()
