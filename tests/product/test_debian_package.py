"""The Debian package: what is in it, and what it does to a machine when it comes, is replaced, goes, and is purged."""

import os
import pathlib
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from bare import Bare, Booted
from bare import machine as machine_of
from proc import wait_until

ROOT = pathlib.Path(__file__).parents[2]
UNITS = ("kite-backend", "kite-frontend")
OLD, NEW = "0.1.0", "0.1.0+upgrade"
# As systemd-analyze counts it, times ten: docs/releasing.md says what it consists of. It calls less than 25 "safe" or "OK".
EXPOSURE = {"kite-backend": 11, "kite-frontend": 15}
STATE = ("/var/lib/kite/backend/keystore", "/var/lib/kite/frontend/frontend-key.pem", "/etc/kite/backend.toml",
         "/etc/kite/secrets/bob")


def build(kite, out, version):
    """The package of this version, with the program under test."""
    done = subprocess.run([ROOT / "packaging" / "deb", out], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "KITE": os.path.abspath(kite), "KITE_DEB_VERSION": version,
                               "KITE_DEB_OPTIONS": "-Zgzip -z1", "SOURCE_DATE_EPOCH": "1767225600"})
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = out.glob(f"kite_{version}_*.deb")
    return package


@pytest.fixture(scope="module")
def packages(kite, tmp_path_factory):
    out = tmp_path_factory.mktemp("packages")
    versions = (OLD, NEW)
    with ThreadPoolExecutor() as pool:
        return dict(zip(versions, pool.map(lambda version: build(kite, out, version), versions)))


@pytest.fixture(scope="module")
def machine(packages, tmp_path_factory):
    """With the old version installed."""
    given = packages[OLD].parent
    with machine_of(Bare, tmp_path_factory.mktemp("bare") / "machine", given) as machine:
        machine.run("dpkg", "--install", f"/mnt/{packages[OLD].name}")
        yield machine


def test_lintian_finds_no_error(packages):
    done = subprocess.run(["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0", packages[OLD]],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_are_where_they_belong(machine):
    listed = machine.run("dpkg", "--listfiles", "kite").split()
    man = {f"/usr/share/man/man1/{page.name}.gz" for page in (ROOT / "docs" / "man").glob("*.1")}
    wanted = {"/usr/bin/kite", "/usr/share/bash-completion/completions/kite", "/usr/share/zsh/vendor-completions/_kite",
              "/usr/share/fish/vendor_completions.d/kite.fish", "/usr/lib/sysusers.d/kite.conf",
              "/usr/share/doc/kite/examples/backend.toml", "/usr/share/doc/kite/examples/frontend.toml",
              "/usr/share/doc/kite/copyright", *man}
    assert wanted <= set(listed)
    assert len(man) > 5
    assert machine.stat("/usr/bin/kite") == "root root 755"
    assert machine.stat("/usr/share/doc/kite/examples/backend.toml") == "root root 644"
    assert machine.run("kite", "--version").startswith("kite ")
    assert "KITE-BACKEND" in machine.run("man", "kite-backend").upper()


def test_user_and_directories(machine):
    assert ":/var/lib/kite:/usr/sbin/nologin" in machine.run("getent", "passwd", "kite")
    assert machine.stat("/etc/kite") == "root kite 750"
    assert machine.stat("/etc/kite/secrets") == "root root 700"


def test_nothing_is_enabled_or_started(machine, kite):
    for unit in UNITS:
        assert machine.run("systemctl", "is-enabled", unit, status=1).strip() == "disabled"
    started = [exe for exe in pathlib.Path("/proc").glob("[0-9]*/exe") if linked(exe) == "/usr/bin/kite"]
    assert started == []


def linked(exe):
    try:
        return os.readlink(exe)
    except OSError:
        return ""


def test_the_units_are_sound(machine):
    assert machine.run("systemd-analyze", "verify", *(f"{unit}.service" for unit in UNITS), "kite-frontend.socket") == ""
    for unit in UNITS:
        machine.run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE[unit]}", f"{unit}.service")
        text = machine.run("cat", f"/lib/systemd/system/{unit}.service")
        role = unit.removeprefix("kite-")
        assert f"ConditionPathExists=/etc/kite/{role}.toml" in text
        assert "LoadCredential=secrets:/etc/kite/secrets" in text


def test_the_examples_load(machine):
    """As the service would: its user, its credentials."""
    machine.run("install", "-d", "-o", "kite", "-m", "0500", "/run/credentials")
    machine.run("sh", "-c", "openssl rand -hex 32 | install -o kite -m 0440 /dev/stdin /run/credentials/secrets_bob")
    as_kite = ("setpriv", "--reuid=kite", "--regid=kite", "--clear-groups", "kite")
    env = {"CREDENTIALS_DIRECTORY": "/run/credentials", "STATE_DIRECTORY": "/tmp/state"}
    machine.run("install", "-d", "-o", "kite", "-m", "0700", "/tmp/state")
    backend = ("reload", "--config", "/usr/share/doc/kite/examples/backend.toml")
    # It reads all of it, and finds only that nobody runs.
    assert "no kite answers at /tmp/state/" in machine.run(*as_kite, *backend, env=env, status=1)
    said = machine.run(*as_kite, *backend, env={"STATE_DIRECTORY": "/tmp/state"}, status=2)
    assert "CREDENTIALS_DIRECTORY" in said and "systemctl start" in said
    # A frontend listens, so it is run until it says that.
    listens = ("kite frontend --config /usr/share/doc/kite/examples/frontend.toml --listen 127.0.0.1:0 2>/tmp/state/said & "
               "until grep -q 'listening on 127.0.0.1:' /tmp/state/said; do kill -0 $! || exit 1; sleep 0.1; done; "
               "kill $!; wait $!")
    machine.run(*as_kite[:-1], "sh", "-c", listens, env=env)


@pytest.mark.parametrize("shell, script", [
    ("bash", "source /usr/share/bash-completion/completions/kite; COMP_WORDS=(kite back); COMP_CWORD=1; "
             "_kite kite back kite; echo \"${COMPREPLY[@]}\""),
    ("bash", "source /usr/share/bash-completion/completions/kite; COMP_WORDS=(kite backend --via); COMP_CWORD=2; "
             "_kite kite --via backend; echo \"${COMPREPLY[@]}\""),
    ("fish", "complete -C 'kite back'"),
    ("fish", "complete -C 'kite backend --via'"),
    ("zsh", "zmodload zsh/zpty; zpty z zsh -f -i; zpty -w z 'PS1=; autoload -U compinit; compinit -u; echo rea''dy'; "
            "zpty -r z out '*ready*'; zpty -n -w z $'kite back\\t'; zpty -r z out '*backend*'; echo $out"),
    ("zsh", "zmodload zsh/zpty; zpty z zsh -f -i; zpty -w z 'PS1=; autoload -U compinit; compinit -u; echo rea''dy'; "
            "zpty -r z out '*ready*'; zpty -n -w z $'kite backend --via\\t'; zpty -r z out '*--via-tor*'; echo $out"),
])
def test_completions(machine, shell, script):
    said = machine.run(shell, "-c", script)
    assert ("--via-tor" if "--via" in script else "backend") in said


def test_what_the_operator_has_survives_all_but_a_purge(machine, packages):
    for path in STATE:
        machine.run("sh", "-c", f"mkdir -p {os.path.dirname(path)} && echo precious >{path} && chmod 600 {path}")
    machine.run("chmod", "0755", "/etc/kite/secrets")
    stats = [machine.stat(path) for path in STATE]

    said = machine.run("dpkg", "--install", f"/mnt/{packages[NEW].name}")
    assert re.search(rf"Unpacking kite \({re.escape(NEW)}\) over \({re.escape(OLD)}\)", said)
    assert [machine.stat(path) for path in STATE] == stats
    assert machine.stat("/etc/kite/secrets") == "root root 755", "the operator's own choice"

    machine.run("dpkg", "--remove", "kite")
    assert not machine.exists("/usr/bin/kite")
    assert [machine.run("cat", path) for path in STATE] == ["precious\n"] * len(STATE)

    machine.run("dpkg", "--install", f"/mnt/{packages[NEW].name}")
    assert [machine.run("cat", path) for path in STATE] == ["precious\n"] * len(STATE)

    machine.run("dpkg", "--purge", "kite")
    for path in ("/var/lib/kite", "/etc/kite", *(f"/etc/systemd/system/multi-user.target.wants/{u}.service" for u in UNITS)):
        assert not machine.exists(path), path
    assert "not installed" in machine.run("dpkg", "--status", "kite", status=1)


FRONTEND = """
listen = ["127.0.0.1:80"]
[[kites]]
name = "tahoebob.alice.example"
secret_file = "credential:secrets_bob"
proof = "required"
"""
BACKEND = """
[[frontends]]
address = "{address}"
[[kites]]
name = "tahoebob.alice.example"
origin = "127.0.0.1:{origin}"
secret_file = "credential:secrets_bob"
"""


def test_the_services_under_systemd(packages, tmp_path):
    """With all their hardening: started, asked, reloaded, restarted by an upgrade, stopped by a removal."""
    with machine_of(Booted, tmp_path / "machine", packages[OLD].parent) as machine:
        def write(path, text):
            machine.run("sh", "-c", f"cat >{path} <<'EOF'\n{text}\nEOF\nchmod 600 {path}; chown kite {path}")

        def main_pid(unit):
            return machine.run("systemctl", "show", "--value", "--property=MainPID", unit).strip()

        def state(unit):
            return machine.run("systemctl", "show", "--value", "--property=ActiveState", unit).strip()

        machine.run("dpkg", "--install", f"/mnt/{packages[OLD].name}")
        machine.run("systemctl", "start", *UNITS)
        assert [state(unit) for unit in UNITS] == ["inactive"] * 2, "without a configuration"

        machine.run("sh", "-c", "umask 077; openssl rand -hex 32 >/etc/kite/secrets/bob")
        write("/etc/kite/frontend.toml", FRONTEND)
        machine.run("systemctl", "start", "kite-frontend")
        address = re.search(r"backends dial (127\S+)", machine.run("journalctl", "--unit=kite-frontend", "--output=cat"))[1]
        write("/etc/kite/backend.toml", BACKEND.format(address=address, origin=9))
        machine.run("systemctl", "start", "kite-backend")
        # `start` has returned, so a kite flies.
        said = machine.run("kite", "status", "--state-dir", "/var/lib/kite/backend")
        assert "flies foolscap:tahoebob.alice.example" in said
        assert "a kite flies" in machine.run("systemctl", "status", "kite-backend")

        write("/etc/kite/backend.toml", BACKEND.format(address=address, origin=10))
        machine.run("sh", "-c", "systemctl reload kite-backend || { journalctl --unit=kite-backend --output=cat; exit 1; }")
        log = machine.run("journalctl", "--unit=kite-backend", "--output=cat")
        assert re.search("reload: kite .*changed|reload: kite ", log)

        before = [main_pid(unit) for unit in UNITS]
        machine.run("dpkg", "--install", f"/mnt/{packages[NEW].name}")
        wait_until(lambda: [state(unit) for unit in UNITS] == ["active"] * 2
                   and not set(before) & {main_pid(unit) for unit in UNITS}, 30, "both restarted")

        machine.run("dpkg", "--remove", "kite")
        assert [state(unit) for unit in UNITS] == ["inactive"] * 2
        assert machine.exists("/var/lib/kite/frontend/frontend-key.pem")


def test_in_tor_mode_the_unit_leaves_the_sandbox_its_room(packages, tmp_path):
    """Tor finds nobody here; what matters is that Arti runs behind both walls, systemd's and kite's own."""
    with machine_of(Booted, tmp_path / "machine", packages[NEW].parent) as machine:
        machine.run("dpkg", "--install", f"/mnt/{packages[NEW].name}")
        machine.run("sh", "-c", "umask 077; openssl rand -hex 32 >/etc/kite/secrets/bob; "
                                "cp /usr/share/doc/kite/examples/backend.toml /etc/kite/; chown kite /etc/kite/backend.toml")
        machine.run("systemctl", "start", "--no-block", "kite-backend")

        def said():
            text = machine.run("systemctl", "status", "kite-backend", status=3)
            return re.search('Status: "Tor: .*connecting', text) and text

        assert "activating" in wait_until(said, 30, "Tor starts")
        log = machine.run("journalctl", "--unit=kite-backend", "--output=cat")
        assert "sandbox: Landlock" in log and "sandbox: seccomp" in log
        # Not at its leisure: it has five seconds to end.
        machine.run("systemctl", "stop", "kite-backend")
        assert "Result=success" in machine.run("systemctl", "show", "--property=Result", "kite-backend")
