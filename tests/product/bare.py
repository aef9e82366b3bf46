"""Machines to install packages on: this one's files under an overlay, in a mount namespace of their own.

What is written there is gone with them.  On a `Bare` one nothing runs but what is started by `run`: no systemd, no
services.  A `Booted` one has its own processes and its own network, of loopback only, and systemd as its process 1.
"""

import contextlib
import os
import pathlib
import signal
import subprocess

from proc import wait_until

# $1 is where it is, $2 the directory that is seen there as /mnt.
FILES = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount -t tmpfs tmpfs "$1/root/run"
mount -t tmpfs tmpfs "$1/root/tmp"
mount --bind "$2" "$1/root/mnt"
# An index of all manual pages takes longer than everything else here.
rm -f "$1/root/var/lib/man-db/auto-update"
cd "$1/root"
"""

IDLE = FILES + """
mount --rbind /dev dev
pivot_root . tmp
umount --lazy tmp
echo ready
exec sleep infinity
"""

# Devices of its own, since systemd changes their modes; one empty hierarchy of control groups, and no controllers;
# none of this machine's services.  Nobody forbids to start services, as images for containers do.
BOOT = FILES + """
mount -t tmpfs tmpfs dev
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
if [ "$3" = unified ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
mount --bind /dev/null proc/cgroups
rm -rf etc/systemd/system/*.wants usr/sbin/policy-rc.d
ip link set lo up
pivot_root . tmp
umount --lazy tmp
mount --make-rshared /
exec env --ignore-environment container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --system --unit=basic.target --log-target=null --show-status=0
"""


class Bare:
    """`given` is the directory whose files are seen in /mnt."""

    def __init__(self, place, given):
        place.mkdir()
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", IDLE, "sh", place, given],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self._keeper.stdout.readline() != "ready\n":
            said = self._keeper.communicate()[1]
            raise RuntimeError(f"no machine to install on: {said} (it needs root, and overlayfs in the kernel)")
        self.inside = ["nsenter", f"--target={self._keeper.pid}", "--mount"]

    def run(self, *command, status=0, env=None):
        """What a command says there."""
        done = subprocess.run(
            [*self.inside, *map(str, command)],
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


class Booted(Bare):
    """With systemd, which is up when this returns."""

    def __init__(self, place, given):
        place.mkdir()
        hybrid = pathlib.Path("/sys/fs/cgroup/systemd")
        self._group = (hybrid if hybrid.is_dir() else hybrid.parent) / f"kite-test-{os.getpid()}"
        self._group.mkdir()
        # Its control group becomes the top of what it sees, hence in this order.
        enter = f'echo $$ >{self._group}/cgroup.procs && exec unshare --pid --fork --kill-child --mount --uts --ipc --net ' \
                '--cgroup --propagation private sh -c "$0" sh "$@"'
        self._keeper = subprocess.Popen(["sh", "-c", enter, BOOT, place, given, "hybrid" if hybrid.is_dir() else "unified"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            self._first = wait_until(self._child, 10, "a process 1")
            self.inside = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--uts", "--ipc", "--net"]
            wait_until(self._is_up, 60, "systemd is up")
        except BaseException:
            self.close()
            raise

    def _child(self):
        assert self._keeper.poll() is None, self._keeper.stderr.read()
        children = pathlib.Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text().split()
        named = [pid for pid in children if pathlib.Path(f"/proc/{pid}/comm").read_text() == "systemd\n"]
        return int(named[0]) if named else None

    def _is_up(self):
        done = subprocess.run([*self.inside, "systemctl", "is-system-running"], capture_output=True, text=True)
        return done.stdout == "running\n"

    def close(self):
        """systemd ends with all its processes; then its control groups are empty."""
        if getattr(self, "_first", None):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGKILL)
        super().close()
        for top, _, _ in os.walk(self._group, topdown=False):
            wait_until(lambda: self._gone(top), 10, f"{top} is empty")

    @staticmethod
    def _gone(group):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


@contextlib.contextmanager
def machine(kind, place, given):
    """One of these, for a while."""
    users = int(pathlib.Path("/proc/self/uid_map").read_text().split()[2])
    if os.geteuid() != 0 or users == 1:
        raise RuntimeError("to install a package, even on a machine made of an overlay, takes root: run the tests as root")
    made = kind(place, given)
    try:
        yield made
    finally:
        made.close()
