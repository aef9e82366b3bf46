"""A Tahoe-LAFS grid of real processes: introducer, storage nodes, client."""

import concurrent.futures
import configparser
import http.client
import json
import os
import pathlib
import subprocess
import sys
import urllib.parse

import names
from island import free_port
from proc import wait_until

TAHOE = pathlib.Path(sys.executable).with_name("tahoe")
CREATE_S = 60
START_S = 30
CONNECT_S = 90
TRANSFER_S = 180
TUB_PORT = 49293


def create(*args):
    done = subprocess.run([TAHOE, *map(str, args)], capture_output=True, text=True, timeout=CREATE_S)
    assert done.returncode == 0, f"tahoe {' '.join(map(str, args))}\n{done.stdout}{done.stderr}"


def in_parallel(*jobs):
    """Run callables two by two (each `tahoe` takes a second of a core); their results in order."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return [job.result() for job in [pool.submit(j) for j in jobs]]


class _Process:
    def __init__(self, sup, directory, hosts, machine=None):
        self.sup, self.dir, self.hosts, self.machine = sup, directory, hosts, machine

    def run(self):
        self.proc = self.sup.spawn(self.dir.name, [TAHOE, "run", "--allow-stdin-close", self.dir],
                                   machine=self.machine, env=names.environment(self.hosts))
        return self

    def change(self, section, **values):
        """Edit tahoe.cfg; the names of values have _ for the dots and dashes of Tahoe's."""
        file = self.dir / "tahoe.cfg"
        config = configparser.ConfigParser(interpolation=None)
        config.optionxform = str
        config.read(file)
        if not config.has_section(section):
            config.add_section(section)
        for key, value in values.items():
            config[section][key] = value
        with open(file, "w") as f:
            config.write(f)


class Introducer(_Process):
    def __init__(self, sup, directory, hosts, name, ip, port=45001):
        super().__init__(sup, directory, hosts)
        self.address = ("tcp", ip, port)
        create("create-introducer", f"--port=tcp:{port}:interface={ip}", f"--location=tcp:{name}:{port}", directory)

    def run(self):
        super().run()
        file = self.dir / "private" / "introducer.furl"
        wait_until(lambda: file.exists() and file.read_text().strip(), START_S, lambda: self.proc.tail())
        self.furl = file.read_text().strip()
        return self


def new_tub(file):
    """A node's certificate and key, as foolscap makes them at a node's first start; its TubID."""
    made = "from foolscap.api import Tub; import sys; print(Tub(certFile=sys.argv[1]).tubID)"
    done = subprocess.run([sys.executable, "-c", made, file], capture_output=True, text=True, timeout=CREATE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Storage(_Process):
    """A storage node on a machine's loopback, announced at `hints`."""

    def __init__(self, sup, directory, hosts, machine, furl, hints, force_foolscap):
        super().__init__(sup, directory, hosts, machine)
        create("create-node", f"--nickname={directory.name}", "--webport=none", f"--introducer={furl}",
                f"--port=tcp:{TUB_PORT}:interface=127.0.0.1", "--location=" + ",".join(hints), directory)
        self.change("storage", force_foolscap=str(force_foolscap).lower(), reserved_space="0")

    target = ("127.0.0.1", TUB_PORT)


class Client(_Process):
    """A client on the island, driven through its web interface."""

    def __init__(self, sup, directory, hosts, furl, shares):
        super().__init__(sup, directory, hosts)
        self.port = free_port()
        needed, happy, total = shares
        create("create-client", f"--nickname={directory.name}", f"--webport=tcp:{self.port}:interface=127.0.0.1",
                f"--introducer={furl}", f"--shares-needed={needed}", f"--shares-happy={happy}",
                f"--shares-total={total}", directory)

    def ask(self, method, path, body=None, timeout=TRANSFER_S):
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            conn.request(method, path, body=body, headers={"Accept": "text/plain"})
            answer = conn.getresponse()
            return answer.status, answer.read()
        finally:
            conn.close()

    def servers(self):
        """What it says of each storage server; none while it is not up itself."""
        try:
            status, body = self.ask("GET", "/?t=json", timeout=10)
        except OSError:
            return []
        return json.loads(body)["servers"] if status == 200 else []

    def wait_connected(self, count, accept=lambda status: True, timeout=CONNECT_S):
        """So many servers are usable, each by a connection that is accepted; the statuses."""
        seen = []

        def connected():
            seen[:] = [(s["nickname"], s["connection_status"], bool(s["version"])) for s in self.servers()]
            good = [status for _, status, usable in seen if usable and accept(status)]
            return good if len(good) == count else None

        return wait_until(connected, timeout, lambda: f"{count} usable storage servers; the client says {seen}", every=1)

    def upload(self, data):
        status, answer = self.ask("PUT", "/uri", body=data)
        assert status in (200, 201), f"upload: {status} {answer[:2000].decode(errors='replace')}"
        return answer.decode().strip()

    def download(self, cap):
        status, data = self.ask("GET", "/uri/" + urllib.parse.quote(cap, safe=""))
        assert status == 200, f"download: {status} {data[:2000].decode(errors='replace')}"
        return data
