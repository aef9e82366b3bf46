"""`kite frontend` and `kite backend` as processes: their files, their flags, their log lines.

The only place that knows how kite is configured and what it says.
"""

import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess

from proc import wait_until

READY_S = 15           # a frontend listens, a direct backend is connected
TOR_S = 90             # a backend has bootstrapped and is connected through Tor

LISTENING = r"listening on {address}"
ONION = r"backends dial (\w{56}\.onion:443)$"
DIAL = r"backends dial \S*#sha256:([A-Za-z0-9_-]{43})"
FRONTEND_UP = r"kite up: (?:{protocol}|{wire}):{name}"
FRONTEND_DOWN = r"kite down: (?:{protocol}|{wire}):{name}"
TUNNEL_FROM = r"(?m)tunnel from (\S+)(?=$| (?!ended))"
BACKEND_UP = r"kite up: {protocol}:{name} via .*{via}"
TOR_READY = r"Tor ready"
SOCKS = r"SOCKS port on {via}"
CONNECTED = r"frontend .*{via}.*: connected"
LOST = r"frontend .*{via}.*: lost"
STREAM_ENDED = r"{via}: stream ended"
RETRY = r"frontend .*{via}.*: retry in"

SERVED = {"foolscap": "http", "tahoe-https": "https"}   # what the wire calls them


def binary():
    """$KITE, or what `cargo build` made."""
    path = os.environ.get("KITE") or pathlib.Path(__file__).parents[2] / "target" / "debug" / "kite"
    if not shutil.which(path):
        raise RuntimeError(f"no kite at {path}: run `cargo build`, or set KITE to the program")
    return str(path)


def run(*args, env=None, cwd=None, status=2):
    """Run kite, which must end by itself with this status; what it said."""
    done = subprocess.run([binary(), *map(str, args)], capture_output=True, text=True, timeout=20, cwd=cwd,
                          env={**{k: v for k, v in os.environ.items() if not k.startswith("KITE")}, **(env or {})})
    said = done.stdout + done.stderr
    assert done.returncode == status, f"exit status {done.returncode}, not {status}\n{said}"
    assert "panicked" not in said
    return said


def secret_file(path, secret):
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return path


class Kite:
    """One service: what it is called, how it speaks, where it is, and the secret both sides know.

    `tub` is the TubID of its node, if the backend is to know it; `port` the public port whose visitors it is for; `limits`
    and `expires` are the frontend's business; `more` are other keys of the backend's table.
    """

    def __init__(self, protocol, name, origin, secret=None, tub=None, limits=None, expires=None, port=None, **more):
        self.limits, self.expires = limits, expires
        self.protocol, self.name, self.origin, self.tub, self.port, self.more = protocol, name, origin, tub, port, more
        self.secret = secret or secrets.token_hex(16)

    @property
    def wire(self):
        return SERVED.get(self.protocol, self.protocol)

    def as_wire(self):
        """The same kite as a peer knows it that has no names for Tahoe's protocols."""
        return Kite(self.wire, self.name, self.origin, self.secret, port=self.port)

    def with_port(self, word):
        return f"{word}-{self.port}" if self.port else word


def _line(pattern, **words):
    return pattern.format(**{k: re.escape(str(v)) for k, v in words.items()})


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return '"' + str(value) + '"'


def _table(head, **keys):
    return "\n".join([head, *(f"{k} = {_toml(v)}" for k, v in keys.items())]) + "\n"


class _Role:
    role = None

    def __init__(self, sup, name):
        self.sup, self.name = sup, name
        self.dir = sup.directory / name
        self.dir.mkdir(parents=True, exist_ok=True)
        self.file = self.dir / f"{self.role}.toml"
        self.state = self.dir / "state"
        self.proc = None

    def flags(self):
        return ["--config", self.file]

    def spawn(self, machine=None, level="debug", env=None):
        self.proc = self.sup.spawn(self.name, [binary(), self.role, *self.flags()],
                                   machine=machine, cwd=self.dir, env={"KITE_LOG": level, **(env or {})},
                                   log=self.dir / "log")
        return self.proc

    def secret(self, kite):
        name = f"{kite.with_port(kite.protocol)}-{kite.name.replace('*', 'any')}.secret"
        return secret_file(self.dir / name, kite.secret)

    def status(self):
        """What `kite status` says.  (It ends with 1 unless all is well.)"""
        done = subprocess.run([binary(), "status", "--state-dir", self.state, "--json"], capture_output=True, text=True,
                              timeout=10)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)[0]

    def stop(self):
        """SIGTERM, which drains: the exit status must be 0."""
        status = self.proc.stop()
        assert status == 0, f"{self.name}: exit status {status} after SIGTERM\n{self.proc.tail()}"

    def kill(self):
        self.proc.kill()


class Frontend(_Role):
    """`kite frontend` on an address of its own.

    `owned` maps a public port to the kite it belongs to (all of it, to a raw one); `onion` is an arti.toml;
    `certificates` are the keys of as many tables; `acme` those of one; `behind` are load balancers, who alone may connect;
    `keys` are more of the file's, and `tables` is more of its text.  Visitors of a kite that is away wait for nobody, also
    just after a start, unless `keys` say so.
    """

    role = "frontend"

    def __init__(self, sup, name, ip, kites, owned=None, ports=(80, 443), log_peers=True, onion=None,
                 env=None, certificates=(), acme=None, behind=None, keys=None, tables=""):
        super().__init__(sup, name)
        self.ip, self.ports, self.owned, self.env = ip, ports, owned or {}, env
        listen = [f"{ip}:{p}" for p in ports]
        if behind:
            listen = [{"address": address, "proxy_protocol": True, "proxy_from": behind} for address in listen]
        listen += [{"address": f"{ip}:{p}", "kite": k.name, **({"protocol": "raw"} if k.protocol == "raw" else {})}
                   for p, k in self.owned.items()]
        text = _table("", listen=listen, state_dir=self.state, log_peers=log_peers, onion=bool(onion),
                      **{"grace": "0s", "drain": "5s", **(keys or {})})
        if onion:
            text += _table("[tor]", config=onion)
        for kite in kites:
            text += _table("[[kites]]", name=kite.name, protocols=[kite.protocol], secret_file=self.secret(kite),
                           **({"limits": kite.limits} if kite.limits else {}),
                           **({"expires": kite.expires} if kite.expires else {}))
        for certificate in certificates:
            text += _table("[[certificates]]", **certificate)
        if acme:
            text += _table("[acme]", **acme)
        self.file.write_text(text + tables)

    def manage(self, *args, status=0):
        """`kite frontend kites`: what it said, and what it said aside."""
        done = subprocess.run([binary(), "frontend", "kites", *map(str, args), "--config", self.file],
                              capture_output=True, text=True, timeout=20)
        assert done.returncode == status, f"exit status {done.returncode}, not {status}\n{done.stdout}{done.stderr}"
        return done.stdout, done.stderr

    def order(self, what, status=0):
        """`kite frontend reload` or `upgrade`: what it said."""
        done = subprocess.run([binary(), "frontend", what, "--state-dir", self.state], capture_output=True, text=True,
                              timeout=180)
        assert done.returncode == status, f"exit status {done.returncode}, not {status}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def start(self, level="debug"):
        self.spawn(level=level, env=self.env)
        for port in [*self.ports, *self.owned]:
            self.proc.wait_log(_line(LISTENING, address=f"{self.ip}:{port}"), READY_S)
        self.pin = self.proc.wait_log(DIAL, READY_S)[1]
        return self

    def pinned(self, host=None, port=443):
        """The address that backends are given."""
        return f"{host or self.ip}:{port}#sha256:{self.pin}"

    def wait_onion(self, timeout=TOR_S):
        """The onion service's address, once it is published."""
        return self.proc.wait_log(ONION, timeout)[1]

    def plain(self, port=80):
        return f"plain://{self.ip}:{port}"

    @property
    def visitors(self):
        return (self.ip, self.ports[0])

    def wait_up(self, kite, since=0, timeout=READY_S):
        self._wait(FRONTEND_UP, kite, since, timeout)

    def wait_down(self, kite, since=0, timeout=READY_S):
        self._wait(FRONTEND_DOWN, kite, since, timeout)

    def _wait(self, pattern, kite, since, timeout):
        words = {"protocol": kite.with_port(kite.protocol), "wire": kite.with_port(kite.wire)}
        self.proc.wait_log(_line(pattern, **words, name=kite.name), timeout, since)

    def tunnel_peers(self):
        """The addresses that tunnels came from, without ports, as logged in all of its runs."""
        found = re.findall(TUNNEL_FROM, self.proc.log.read_text(errors="replace"))
        return [peer.rstrip(".,;").rsplit(":", 1)[0].strip("[]") for peer in found]


class Backend(_Role):
    """`kite backend`, perhaps on a hidden machine.

    `frontends` are addresses; `via_tor` is an arti.toml; `socks` is where the node may come in.  `share` gives
    each frontend one kite of its own, in the order of both.  `probe` are the keys of [probe]; without them it does
    not visit itself, which would be one more visitor than a test knows of.
    """

    role = "backend"

    def __init__(self, sup, name, frontends, kites, via_tor=None, machine=None, share=False, env=None, socks=None,
                 tunnels=None, ca_file=None, probe=None):
        super().__init__(sup, name)
        self.probe = probe or {"enabled": False}
        self.frontends, self.kites, self.via_tor, self.machine = frontends, kites, via_tor, machine
        self.env, self.share, self.socks, self.tunnels_each = env, share, socks, tunnels
        self.ca_file = ca_file
        self.write()

    def write(self):
        """Its file, from what it is to do."""
        via_tor, socks, share, tunnels = self.via_tor, self.socks, self.share, self.tunnels_each
        text = _table("", state_dir=self.state, drain="5s", **({"ca_file": self.ca_file} if self.ca_file else {}))
        if via_tor:
            text += _table("[tor]", enabled=True, config=via_tor, **({"socks_listen": socks} if socks else {}))
        text += _table("[probe]", **self.probe)
        for i, address in enumerate(self.frontends):
            text += _table("[[frontends]]", address=address, **({"kites": [self.kites[i].name]} if share else {}),
                           **({"tunnels": tunnels} if tunnels else {}))
        for kite in self.kites:
            # One that proves itself by its tub has the node's key for a secret, or none.
            secret = {} if "proof" in kite.more else {"secret_file": self.secret(kite)}
            text += _table("[[kites]]", name=kite.name, protocol=kite.protocol, origin=kite.origin, **secret,
                           **({"tub_id": kite.tub} if kite.tub else {}),
                           **({"port": kite.port} if kite.port else {}), **kite.more)
        self.file.write_text(text)

    def start(self):
        self.spawn(self.machine, env=self.env)
        return self

    def reload(self, status=0):
        """Write the file anew, and have the running backend take it; what `kite reload` said.  It runs where
        the backend does, so whatever it sends is seen."""
        self.write()
        asking = self.sup.spawn(f"{self.name}-reload", [binary(), "reload", *self.flags()],
                                machine=self.machine, log=self.dir / "reload-log")
        assert asking.wait(30) == status, asking.tail()
        return asking.text()

    def wait_up(self, kite, via, since=0, timeout=None):
        """The kite flies from a frontend whose address has `via` in it."""
        self.proc.wait_log(_line(BACKEND_UP, protocol=kite.with_port(kite.protocol), name=kite.name, via=via),
                           timeout or (TOR_S if self.via_tor else READY_S), since)

    def wait_line(self, pattern, via="", since=0, timeout=READY_S):
        return self.proc.wait_log(_line(pattern, via=via), timeout, since)

    def wait_tries(self, number, via, since=0, timeout=60):
        """It has tried to reach a frontend in vain so many times."""
        pattern = _line(RETRY, via=via)
        wait_until(lambda: len(re.findall(pattern, self.proc.text(since))) >= number, timeout,
                   lambda: f"{number} tries to reach {via}\n{self.proc.tail()}")

    def status(self):
        """What `kite status --json` says of it, and how that ended."""
        said = subprocess.run([binary(), "status", "--json", "--state-dir", self.state], capture_output=True)
        kites = json.loads(said.stdout or "[{}]")
        assert len(kites) == 1 and kites[0].get("role") == "backend", (said.stdout, said.stderr)
        return {**kites[0], "exit status": said.returncode}

    def tunnels(self):
        """The states of its tunnels, in their order."""
        return [tunnel["state"] for tunnel in self.status()["tunnels"]]

    def wait_tor(self, timeout=TOR_S):
        self.proc.wait_log(TOR_READY, timeout)


class RcBackend(Backend):
    """`kite backend` with a pagekite.rc; Tor is a flag, since the file cannot say it.  `file` may be exchanged."""

    def __init__(self, sup, name, rc, via_tor, machine=None):
        self.rc = rc
        super().__init__(sup, name, [], [], via_tor=via_tor, machine=machine)

    def write(self):
        self.file = self.dir / "pagekite.rc"
        secret_file(self.file, self.rc)

    def flags(self):
        return [*super().flags(), "--state-dir", self.state, "--via-tor", "--tor-config", self.via_tor]
