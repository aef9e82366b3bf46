"""A private Tor network of Debian's `tor`: one authority, relays, exits.

Each node has an address of its own on the island (10.77.0.x), and a visitor
that comes through an exit shows that exit's address (on 127/8 C tor would not
bind to it, hence the island).  The exits ask a name server of ours, so a name
that nobody else knows reaches its host through an exit only.

A private bridge is a node of the network that no directory lists; only who has its line finds it.

Usable about ten seconds after start: the authority assigns the flags, nothing
is measured, and the voting clock is shifted so that the first vote comes just
after every relay has published itself.
"""

import collections
import concurrent.futures
import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.request

from proc import Supervisor

OR_PORT = 9001
DIR_PORT = 9030
DNS_PORT = 5353
CONTROL_PORT = 9051     # of exits
OBFS4_PORT = 9003
INITIAL_S = 20          # interval of the first votes; more than UPLOAD_S + VOTE_S ever gets
VOTE_S = 4              # V3AuthVoteDelay + V3AuthDistDelay, both at their minimum
UPLOAD_S = 5            # what relays get to publish themselves before the first vote
INTERVAL_S = 300        # then a new consensus every five minutes, each valid for three of these
WAIT_S = 30             # for the first consensus


class Node:
    def __init__(self, root, name, role, ip):
        self.name, self.role, self.ip, self.dir = name, role, ip, root / name
        self.keys = self.dir / "keys"

    def make_keys(self):
        """What others must know before this node starts, and what takes it long to make."""
        self.keys.mkdir(parents=True, exist_ok=True)
        self.dir.chmod(0o700)
        self.keys.chmod(0o700)
        if self.role == "auth":
            subprocess.run(
                ["tor-gencert", "--create-identity-key", "-m", "12", "-a", f"{self.ip}:{DIR_PORT}",
                 "--passphrase-fd", "0"],
                cwd=self.keys, input=b"private test network\n", check=True, capture_output=True)
        # A throw-away run of tor makes the relay keys and writes both fingerprints.
        subprocess.run(
            ["tor", "-f", os.devnull, "--ignore-missing-torrc", "--quiet", "--list-fingerprint",
             "--ORPort", "1", "--Nickname", self.name, "--DirAuthority", "x 127.0.0.1:1 " + "f" * 40,
             "--DataDirectory", str(self.dir)], check=True, capture_output=True)

    def forget(self):
        """Everything but the keys."""
        for old in self.dir.iterdir():
            if old != self.keys and not old.name.startswith("fingerprint"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()

    def fingerprint(self, kind=""):
        return "".join((self.dir / f"fingerprint{kind}").read_text().split()[1:])

    @property
    def listed(self):
        """Does the directory know it?"""
        return self.role not in ("bridge", "obfs4")

    @property
    def entrance(self):
        """Where a client that has the bridge line comes in: ("tcp", address, port)."""
        return ("tcp", self.ip, OBFS4_PORT if self.role == "obfs4" else OR_PORT)

    @property
    def bridge_line(self):
        _, ip, port = self.entrance
        if self.role == "bridge":
            return f"{ip}:{port} {self.fingerprint()}"
        text = (self.dir / "pt_state" / "obfs4_bridgeline.txt").read_text()
        return f"obfs4 {ip}:{port} {self.fingerprint()} {re.search(r'cert=.*', text)[0]}"

    @property
    def v3ident(self):
        text = (self.keys / "authority_certificate").read_text()
        return re.search(r"^fingerprint (\w+)", text, re.M)[1]


class TorNet:
    """The network.  `names` maps what the exits can resolve to addresses; `bridges` are roles, "bridge" or "obfs4".

    With `exits_are_kin` they are one family, and no circuit has two of them: an exit that dies takes the circuits
    with it that end there, and no others.  `interval` is the time between two votes, each of which is good for three
    of these.  `authority` is the program that the authority runs.  `clock` is what all nodes live by (clocks.py).
    `params` are said in the consensus, such as "cc_alg=0".
    """

    def __init__(self, root, subnet, names, exits=3, relays=2, exits_are_kin=False, bridges=(), interval=INTERVAL_S,
                 authority="tor", clock=None, params=""):
        for program, package in (("tor", "tor"), *(("obfs4proxy", "obfs4proxy") for b in bridges if b == "obfs4")):
            if not shutil.which(program):
                raise RuntimeError(f"the tests need {program}: apt-get install {package}")
        self.root, self.names, self.subnet, self.exits_are_kin = root, names, subnet, exits_are_kin
        self.interval, self.program, self.clock, self.params = interval, authority, clock, params
        self.exit_policy = "accept *:*"
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        roles = ["auth"] + ["relay"] * relays + ["exit"] * exits + list(bridges)
        self.nodes = [Node(root, f"{role}{i}", role, f"{subnet}.{i + 1}") for i, role in enumerate(roles)]
        self.sup = Supervisor(root / "logs")
        self.asked = []                       # the names that exits looked up, in order
        self._dns = None
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(Node.make_keys, self.nodes))

    # ------------------------------------------------------------- facts

    @property
    def auth(self):
        return self.nodes[0]

    @property
    def authority(self):
        """The torrc line by which C tor knows this network."""
        a = self.auth
        return f"DirAuthority {a.name} orport={OR_PORT} v3ident={a.v3ident} {a.ip}:{DIR_PORT} {a.fingerprint()}"

    @property
    def exits(self):
        return {n.ip for n in self.nodes if n.role == "exit"}

    @property
    def relays(self):
        """What a Tor client may dial: ("tcp", address, port) of every relay."""
        return {("tcp", n.ip, OR_PORT) for n in self.nodes if n.listed}

    @property
    def bridges(self):
        return [n for n in self.nodes if not n.listed]

    @property
    def guards(self):
        return [n for n in self.nodes if n.role in ("auth", "relay")]

    def arti_toml(self, directory, bridge=None, caches=None, transport="obfs4proxy", more="", period=None):
        """A configuration for arti-client, with its state in `directory`, and more lines; the file.

        `period` is the onion services' time period, in minutes.
        """
        a, caches = self.auth, caches or [self.auth]
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        path = directory / "arti.toml"
        path.write_text(f"""\
[storage]
cache_dir = "{directory}/arti/cache"
state_dir = "{directory}/arti/state"
[storage.permissions]
dangerously_trust_everyone = true     # the test's directory may lie below anything
[tor_network]
fallback_caches = [
{"".join(f'  {{ rsa_identity = "{n.fingerprint()}", ed_identity = "{n.fingerprint("-ed25519")}", '
         f'orports = ["{n.ip}:{OR_PORT}"] }},{chr(10)}' for n in caches)}]
[tor_network.authorities]
v3idents = ["{a.v3ident}"]
[address_filter]
allow_local_addrs = true
allow_resolving_local_addrs = true
[path_rules]
ipv4_subnet_family_prefix = 33
ipv6_subnet_family_prefix = 129
[circuit_timing]
# The default, 15 minutes, makes one early failed look-up of a service stick.
hs_dir_requery_interval = "2 seconds"
[override_net_params]
# Arti learns circuit time-outs from the fastest builds it sees.  On loopback it
# learns a few tens of milliseconds and then gives up on healthy circuits.
cbtmintimeout = 3000
# C tor's test networks use 24 voting intervals as the onion time period.
hsdir_interval = {period or self.interval * 24 // 60}
""" + (f"""\
[bridges]
bridges = ["{bridge.bridge_line}"]
[[bridges.transports]]
protocols = ["obfs4"]
path = "{shutil.which(transport) or transport}"
""" if bridge else "") + more)
        return path

    # ----------------------------------------------------------- actions

    def start(self):
        """Start (or start again, with the same keys) and wait until it is usable."""
        if self._dns is None:
            self._dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._dns.bind((self.auth.ip, DNS_PORT))
            self._dns.settimeout(0.2)            # a socket that is closed while it is read keeps its port
            self._names = threading.Thread(target=self._serve_names, args=(self._dns,), daemon=True)
            self._names.start()
        for attempt in range(3):
            now = time.time() + (self.clock.ahead if self.clock else 0)
            self._offset = int(now + UPLOAD_S * (attempt + 1) + VOTE_S) % INITIAL_S
            for n in self.nodes:
                self.run(n)
            if self._wait_usable():
                return self
            # The first consensus came without some relay, and the next is
            # minutes away: start over, with more time to publish.
            evidence = [p.tail() for p in self.sup.procs]
            self.kill()
            for n in self.nodes:
                n.forget()
        raise AssertionError("no usable Tor network after three attempts\n"
                             + "\n".join(evidence))

    def log(self, node):
        """What a node has said."""
        return (self.root / "logs" / f"{node.name}.log").read_text()

    def run(self, node):
        """Start one node, perhaps again."""
        (node.dir / "torrc").write_text(self._torrc(node))
        program = self.program if node.role == "auth" else "tor"
        env = self.clock.environment(node.dir) if self.clock else None
        self.sup.spawn(node.name, [program, "-f", node.dir / "torrc", "--quiet"], env=env)

    def kill(self, nodes=None):
        """Every relay, or some, at once, without goodbye."""
        names = {n.name for n in nodes or self.nodes}
        doomed = [p for p in self.sup.procs if p.name in names]
        for p in doomed:
            p.popen.kill()
        for p in doomed:
            p.popen.wait(5)
            self.sup.procs.remove(p)

    def stop(self):
        self.kill()
        if self._dns:
            dns, self._dns = self._dns, None
            self._names.join(5)
            dns.close()

    def client(self, sup, socks):
        """A stock Tor client whose SOCKS port is at (address, port); it is ready when this returns."""
        torrc = sup.directory / "torrc"
        torrc.write_text(f"""TestingTorNetwork 1
{self.authority}
DataDirectory {sup.directory}/tor
SocksPort {socks[0]}:{socks[1]}
ClientRejectInternalAddresses 0
""")
        sup.spawn("client", ["tor", "-f", torrc]).wait_log("Bootstrapped 100%", 30)

    def _torrc(self, node):
        d, a = node.dir, self.auth
        exits = ",".join(sorted(self.exits))
        guards = ",".join(n.ip for n in self.guards)
        lines = [
            "TestingTorNetwork 1",
            self.authority,
            f"DataDirectory {d}",
            f"Log notice {'[rend]info ' if self.clock else ''}file {self.root}/logs/{node.name}.log",
            "RunAsDaemon 0", "SocksPort 0", "SafeLogging 0", "ShutdownWaitLength 0",
            "AddressDisableIPv6 1", "PathsNeededToBuildCircuits 0.25", "NumCPUs 1",
            f"GeoIPFile {os.devnull}", f"GeoIPv6File {os.devnull}",      # half a second each
            f"Nickname {node.name}", f"Address {node.ip}",
            f"ORPort {node.ip}:{OR_PORT}", f"DirPort {f'{node.ip}:{DIR_PORT}' if node.listed else 0}",
            f"OutboundBindAddress {node.ip}",
            "AssumeReachable 1", "ContactInfo test@example.invalid",
            "ServerDNSDetectHijacking 0", "ServerDNSTestAddresses",
        ]
        if node.role == "auth":
            lines += [
                "AuthoritativeDirectory 1", "V3AuthoritativeDirectory 1",
                f"TestingV3AuthInitialVotingInterval {INITIAL_S}",
                f"TestingV3AuthVotingStartOffset {self._offset}",
                "TestingV3AuthInitialVoteDelay 2", "TestingV3AuthInitialDistDelay 2",
                f"V3AuthVotingInterval {self.interval}", "V3AuthVoteDelay 2", "V3AuthDistDelay 2",
                "V3AuthNIntervalsValid 3",
                "TestingAuthDirTimeToLearnReachability 0",
                "TestingMinExitFlagThreshold 0", "TestingMinFastFlagThreshold 0",
                f"TestingDirAuthVoteExit {exits}", "TestingDirAuthVoteExitIsStrict 1",
                f"TestingDirAuthVoteGuard {guards}", "TestingDirAuthVoteGuardIsStrict 1",
                "TestingDirAuthVoteHSDir *", "MinUptimeHidServDirectoryV2 0",
                "AuthDirFastGuarantee 1",           # byte a second: else some lose the flag when this one restarts
                "AuthDirVoteStableGuaranteeMinUptime 0", "AuthDirVoteStableGuaranteeMTBF 0",
                # No shared random value is ever published, so C tor and Arti both
                # use the fall-back ring of directories from the first consensus on.
                "AuthDirSharedRandomness 0",
                # Else a relay is down once it has not been tested for 45 minutes, by a clock that may be set.
                *(["AuthDirTestReachability 0"] if self.clock else []),
                *([f"ConsensusParams {self.params}"] if self.params else []),
            ]
        if node.role == "exit" and self.exits_are_kin:
            lines.append("MyFamily " + ",".join(f"${n.fingerprint()}" for n in self.nodes if n.role == "exit"))
        if node.role == "exit":
            resolv = d / "resolv.conf"
            # libevent, unlike the C library, accepts a port here.
            resolv.write_text(f"nameserver {a.ip}:{DNS_PORT}\n")
            lines += ["ExitRelay 1", "ExitPolicyRejectPrivate 0", f"ExitPolicy {self.exit_policy}",
                      # Else an exit refuses streams until its first consensus.
                      "RefuseUnknownExits 0",
                      f"ControlPort {node.ip}:{CONTROL_PORT}", "CookieAuthentication 1",
                      f"ServerDNSResolvConfFile {resolv}", "ServerDNSSearchDomains 0"]
        else:
            lines += ["ExitRelay 0", "ExitPolicy reject *:*"]
        if not node.listed:
            lines += ["BridgeRelay 1", "PublishServerDescriptor 0", "BridgeDistribution none"]
        if node.role == "obfs4":
            lines += [f"ServerTransportPlugin obfs4 exec {shutil.which('obfs4proxy')}",
                      f"ServerTransportListenAddr obfs4 {node.ip}:{OBFS4_PORT}", "ExtORPort auto"]
        return "\n".join(lines) + "\n"

    def _wait_usable(self):
        """Every node is listed as running and its microdescriptor can be had."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            for p in self.sup.procs:
                if not p.alive():
                    raise AssertionError(p.tail())
            if self._consensus() is not None:
                break
            time.sleep(0.1)
        end = time.monotonic() + 2             # microdescriptors may be a moment late
        while time.monotonic() < end:
            if self._consensus():
                return True
            time.sleep(0.1)
        return False

    def _consensus(self):
        """None: there is none yet.  Else whether it is complete."""
        url = f"http://{self.auth.ip}:{DIR_PORT}/tor/"
        text = _fetch(url + "status-vote/current/consensus-microdesc")
        if text is None:
            return None
        running = {m[1] for m in re.finditer(r"^r (\S+) .*\n(?:[^r].*\n)*?s .*\bRunning\b", text, re.M)}
        if running != {n.name for n in self.nodes if n.listed}:
            return False
        digests = re.findall(r"^m (\S+)$", text, re.M)
        return bool(_fetch(url + "micro/d/" + "-".join(digests)))

    def _serve_names(self, dns):
        """Answer A queries for the known names; NXDOMAIN for all others.  Until the network is stopped."""
        while self._dns is dns:
            try:
                query, peer = dns.recvfrom(1500)
            except TimeoutError:
                continue
            labels, i = [], 12
            while i < len(query) and query[i]:
                labels.append(query[i + 1:i + 1 + query[i]].decode("latin1"))
                i += 1 + query[i]
            name = ".".join(labels).lower()          # Tor sends rANdom case
            self.asked.append(name)
            kind, = struct.unpack("!H", query[i + 1:i + 3])
            ip = self.names.get(name)
            answer = b""
            if ip and kind == 1:
                answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(ip)
            head = struct.pack("!HHHHH", 0x8180 if ip else 0x8183, 1, bool(answer), 0, 0)
            dns.sendto(query[:2] + head + query[12:i + 5] + answer, peer)


class Circuits:
    """Which circuits carry what, as the exits of a network say themselves.

    Within the block, `cells()` maps (exit, connection, circuit) to how many data cells went to the client that way,
    for the circuits that end there and were made within the block.
    """

    def __init__(self, net):
        self._cells, self._others = collections.Counter(), set()
        self._socks = []
        for node in net.nodes:
            if node.role == "exit":
                sock = socket.create_connection((node.ip, CONTROL_PORT), timeout=5)
                cookie = (node.dir / "control_auth_cookie").read_bytes().hex()
                sock.sendall(f"AUTHENTICATE {cookie}\r\nSETEVENTS CELL_STATS\r\n".encode())
                self._socks.append(sock)
                threading.Thread(target=self._listen, args=(node.ip, sock), daemon=True).start()
        # They tell their counts once a second, and at first what they have kept of circuits from before.
        time.sleep(2.5)
        self._others.update(self._cells)

    def _listen(self, exit_, sock):
        sock.settimeout(None)
        with contextlib.suppress(OSError), sock.makefile() as lines:
            for line in lines:
                said = dict(word.split("=", 1) for word in line.split() if "=" in word)
                if "InboundQueue" not in said:
                    continue
                circuit = (exit_, said["InboundConn"], said["InboundQueue"])
                sent = dict(kind.split(":") for kind in said.get("InboundRemoved", "").split(",") if kind)
                self._cells[circuit] += int(sent.get("relay", 0))
                if "OutboundQueue" in said:                  # it goes on to another relay
                    self._others.add(circuit)

    def cells(self):
        return {circuit: n for circuit, n in self._cells.copy().items() if circuit not in self._others}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as r:
            return r.read().decode()
    except OSError:
        return None
