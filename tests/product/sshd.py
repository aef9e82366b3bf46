"""Debian's sshd as an origin, and ssh as its visitor.  Each ssh checks the host's key: nobody stands between them."""

import pathlib
import shutil
import subprocess
import sys

from island import free_port
from proc import reachable, wait_until

CONNECT = pathlib.Path(__file__).with_name("connect.py")
PATIENCE = 30


def _program(name, package):
    path = shutil.which(name, path="/usr/bin:/usr/sbin")
    if not path:
        raise RuntimeError(f"the tests need {name}: apt-get install {package}")
    return path


class Sshd:
    """sshd on a port of `machine`'s loopback, for whoever has the key that is made with it."""

    def __init__(self, sup, machine):
        if pathlib.Path("/proc/self/setgroups").read_text().strip() == "deny":
            raise RuntimeError("sshd needs true root: run these tests as root")
        self.dir = sup.directory / "sshd"
        self.dir.mkdir()
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("host", "user"):
            subprocess.run([_program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f",
                            self.dir / name], check=True)
        host, port = "127.0.0.1", free_port()
        self.address = f"{host}:{port}"
        config = self.dir / "sshd_config"
        config.write_text("\n".join([
            f"ListenAddress {host}:{port}", f"HostKey {self.dir / 'host'}",
            f"AuthorizedKeysFile {self.dir / 'user.pub'}", "StrictModes no", "UsePAM no", "PidFile none",
            "PasswordAuthentication no", "PermitRootLogin yes"]) + "\n")
        program = _program("sshd", "openssh-server")
        self.proc = sup.spawn("sshd", [program, "-D", "-e", "-f", config], machine=machine)
        with machine.inside():
            wait_until(lambda: reachable((host, port)), PATIENCE, lambda: f"sshd listens\n{self.proc.tail()}")

    def run(self, name, command, sent=b"", frontend=None, to=None):
        """What a command on the host says, as seen through a frontend: by HTTP CONNECT to the name there, or
        straight `to` an address that is the kite's own."""
        known = self.dir / f"known-{name}"
        known.write_text(f"{name} {(self.dir / 'host.pub').read_text()}")
        way = (["-o", f"ProxyCommand={sys.executable} {CONNECT} {frontend[0]} {frontend[1]} %h %p", "-p", "22", name]
               if frontend else ["-p", str(to[1]), to[0]])
        done = subprocess.run(
            [_program("ssh", "openssh-client"), "-F", "none", "-i", self.dir / "user", "-l", "root", "-o", "BatchMode=yes",
             "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", f"HostKeyAlias={name}",
             *way, command], input=sent, capture_output=True, timeout=PATIENCE)
        assert done.returncode == 0, (done.stderr, self.proc.tail())
        return done.stdout
