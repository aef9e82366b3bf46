"""Debian's etcd, with TLS both ways, on a machine or the island."""

import base64
import datetime
import ipaddress
import json
import shutil
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from island import Island
from proc import wait_until

READY_S = 30
READY = "ready to serve client requests"


def binary(name="etcd"):
    path = shutil.which(name)
    if not path:
        raise RuntimeError(f"the tests need {name}: apt-get install etcd-server etcd-client")
    return path


class Authority:
    """A certificate authority of the operator's own; `ca` is its certificate."""

    def __init__(self, directory):
        self.dir = directory
        self.dir.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the operator")])
        cert = self._build(self.name, self.key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.ca = self._write("ca", cert.sign(self.key, hashes.SHA256()), None)[0]

    def _build(self, name, key):
        now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
        return (x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + 2 * day))

    def _write(self, name, cert, key):
        files = [self.dir / f"{name}.pem"]
        files[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        if key:
            files.append(self.dir / f"{name}-key.pem")
            files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                                   serialization.NoEncryption()))
            files[1].chmod(0o600)
        return files

    def issue(self, name, *addresses):
        """A certificate and its key.  etcd's own gateway is a client of etcd's, and so both uses are allowed."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses] or [x509.DNSName(name)]
        # Where etcd has users its gateway takes no certificate with a CommonName.
        cert = (self._build(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]), key)
                .add_extension(x509.SubjectAlternativeName(names), critical=False)
                .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                               critical=False))
        return self._write(name, cert.sign(self.key, hashes.SHA256()), key)


class Etcd:
    """One etcd, in which everybody must show a certificate of the authority's."""

    def __init__(self, sup, ip, machine=None, name="etcd"):
        self.sup, self.ip, self.machine, self.name = sup, ip, machine or Island(), name
        self.url = f"https://{ip}:2379"
        self.data = sup.directory / f"{name}-data"
        self.authority = Authority(sup.directory / f"{name}-certificates")
        self.cert, self.key = self.authority.issue(name, ip, "127.0.0.1")
        self.client = self.authority.issue("frontend")
        self.root = []
        self.proc = None

    def start(self, *more):
        local = "http://127.0.0.1:2380"
        argv = [binary(), "--name", self.name, "--data-dir", self.data, "--listen-client-urls", self.url,
                "--advertise-client-urls", self.url, "--listen-peer-urls", local, "--initial-advertise-peer-urls", local,
                "--initial-cluster", f"{self.name}={local}", "--trusted-ca-file", self.authority.ca, "--client-cert-auth",
                "--cert-file", self.cert, "--key-file", self.key, *more]
        self.proc = self.sup.spawn(self.name, argv, machine=self.machine)
        self.proc.wait_log(READY, READY_S)
        return self

    def stop(self):
        self.proc.stop()

    def wipe(self):
        """As if it had never been; it must not run."""
        shutil.rmtree(self.data)
        self.root = []

    def ask_who(self, password):
        """From now on only users may do anything: root, and one for frontends with this password."""
        for words in ("user add root:root", "user grant-role root root", f"user add kite:{password}", "role add kite",
                      "role grant-permission kite --prefix=true readwrite kite/", "user grant-role kite kite", "auth enable"):
            self.ctl(*words.split())
        self.root = ["--user=root:root"]

    def compact(self):
        """Forgets all that is past."""
        revision = json.loads(self.ctl("get", "kite/life", "-w", "json"))["header"]["revision"]
        self.ctl("compact", revision)

    def table(self, **more):
        """[fleet.etcd] of a frontend. At the first of its endpoints there is nobody."""
        cert, key = self.client
        return {"endpoints": [self.url.replace("2379", "1"), self.url], "ca": self.authority.ca, "cert": cert, "key": key, **more}

    def ctl(self, *args):
        """What etcdctl says."""
        cert, key = self.client
        with self.machine.inside():
            done = subprocess.Popen(
                [binary("etcdctl"), f"--endpoints={self.url}", f"--cacert={self.authority.ca}", f"--cert={cert}", f"--key={key}",
                 *self.root, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"ETCDCTL_API": "3"})
        out, err = done.communicate(timeout=30)
        assert done.returncode == 0, f"etcdctl {args}: {out}{err}"
        return out

    def keys(self, prefix="kite/"):
        """What stands there: keys, and what their values say."""
        found = json.loads(self.ctl("get", prefix, "--prefix", "-w", "json")).get("kvs", [])
        text = lambda b: base64.b64decode(b).decode()
        return {text(kv["key"]): text(kv.get("value", "")) for kv in found}

    def wait_keys(self, accept, timeout, what):
        """Until it accepts what stands there; that."""
        def accepted():
            keys = self.keys()
            return keys if accept(keys) else None
        return wait_until(accepted, timeout, lambda: f"{what}: {self.keys()}", every=0.2)
