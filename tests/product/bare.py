"""A machine to install packages on: this one's files under an overlay, in a mount namespace of its own.

What is written there is gone with it, and nothing runs there but what is started by `run`: no systemd, no services.
"""

import contextlib
import os
import pathlib
import subprocess

SETUP = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs tmpfs "$1/root/run"
mount -t tmpfs tmpfs "$1/root/tmp"
mount --bind "$2" "$1/root/mnt"
echo ready
exec sleep infinity
"""


class Bare:
    """`given` is the directory whose files are seen in /mnt."""

    def __init__(self, place, given):
        place.mkdir()
        self._root = place / "root"
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", SETUP, "sh", place, given],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self._keeper.stdout.readline() != "ready\n":
            said = self._keeper.communicate()[1]
            raise RuntimeError(f"no machine to install on: {said} (it needs root, and overlayfs in the kernel)")

    def run(self, *command, status=0, env=None):
        """What a command says there."""
        done = subprocess.run(
            ["nsenter", f"--target={self._keeper.pid}", "--mount", "chroot", self._root, *map(str, command)],
            capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8",
                 **(env or {})})
        said = done.stdout + done.stderr
        assert done.returncode == status, f"{command}: exit status {done.returncode}, not {status}\n{said}"
        return said

    def stat(self, path):
        """Owner, group and mode."""
        return self.run("stat", "--format=%U %G %a", path).strip()

    def exists(self, path):
        return self.run("sh", "-c", f"[ -e {path} ] && echo yes || echo no") == "yes\n"

    def close(self):
        self._keeper.kill()
        self._keeper.wait()


@contextlib.contextmanager
def bare_machine(place, given):
    users = int(pathlib.Path("/proc/self/uid_map").read_text().split()[2])
    if os.geteuid() != 0 or users == 1:
        raise RuntimeError("to install a package, even on a machine made of an overlay, takes root: run the tests as root")
    machine = Bare(place, given)
    try:
        yield machine
    finally:
        machine.close()
