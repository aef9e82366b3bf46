"""Metrics: read by the real promtool and the real Prometheus, documented one by one, and the dashboard's as well."""

import contextlib
import http.client
import json
import pathlib
import re
import shutil
import socket
import subprocess
import time
import urllib.parse

import pytest

from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite, run
from proc import wait_until
from traffic import HttpOrigin

ROOT = pathlib.Path(__file__).parents[2]
AT = {"frontend": ("127.0.0.1", 9464), "backend": ("127.0.0.1", 9465)}
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0"}


def tool(name):
    assert shutil.which(name), f"the tests need {name}: apt-get install prometheus"
    return name


def get(address, path="/metrics", method="GET", headers=()):
    connection = http.client.HTTPConnection(*address, timeout=5)
    with contextlib.closing(connection):
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


def samples(text):
    """Name and labels, and the value, of each line."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            assert key not in found, f"twice: {key}"
            found[key] = float(value)
    return found


def labelled(found):
    """The labels of each metric among these samples."""
    seen = {}
    for key in found:
        name, _, labels = key.partition("{")
        seen.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return seen


@pytest.fixture
def pair(kite, sup):
    """A frontend and a backend with metrics, and a visitor that came and one that was sent away."""
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        def listen(role):
            return '\n[metrics]\nlisten = "%s:%d"\n' % AT[role]
        frontend = Frontend(sup, "frontend", new_address(), [service], ports=(80,),
                            tables=listen("frontend") + '[open]\ndomain = "open.example"\n').start()
        backend = Backend(sup, "backend", [frontend.plain()], [service])
        backend.file.write_text(backend.file.read_text() + listen("backend"))
        backend.start().wait_up(service, frontend.ip)
        for host, status in ((service.name, 200), ("nobody.example", 503)):
            connection = http.client.HTTPConnection(frontend.ip, 80, timeout=10)
            connection.request("GET", "/bytes/1/1000", headers={"Host": host, "Connection": "close"})
            answer = connection.getresponse()
            assert answer.status == status
            answer.read()
            connection.close()
        yield frontend, backend, service


def documented():
    """The names in the first column of docs/metrics.md, and the labels in the second."""
    rows = re.findall(r"^\| `(kite_\w+)` \| (.*?) \|", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert len(rows) > 20
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_promtool_and_prometheus_read_them_and_each_is_documented(pair, sup, tmp_path):
    frontend, backend, service = pair
    docs, seen = documented(), {}
    for role, address in AT.items():
        status, headers, text = get(address)
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        checked = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
        assert checked.returncode == 0 and not checked.stderr, checked.stderr
        status, headers, text = get(address, headers=OPENMETRICS)
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        for name, labels in labelled(samples(text)).items():
            seen.setdefault(name, set()).update(labels)
        assert "10.77." not in re.sub(re.escape(frontend.ip), "", text), "an address is in the metrics"
        assert service.secret not in text
    unexpected = {name: labels for name, labels in seen.items() if labels != docs.get(name)}
    assert not unexpected, f"not as docs/metrics.md has it: {unexpected}"
    # What needs Tor, a probe, or trouble is not there now; what needs a fleet is compared where there is one (fleet_peer.py).
    absent = {name for name in docs.keys() - seen.keys() if not re.match("kite_(tor|probe|fleet)_|kite_frontend_(score|astray)$", name)}
    assert absent <= {"kite_tunnel_circuit_age_seconds", "kite_tunnel_retry_seconds",
                      "kite_tunnel_round_trip_seconds"}, absent

    config = tmp_path / "prometheus.yml"
    config.write_text("global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: kite\n  static_configs:\n"
                      "  - targets: [%s]\n" % ", ".join('"%s:%d"' % a for a in AT.values()))
    subprocess.run([tool("promtool"), "check", "config", config], check=True, capture_output=True)
    sup.spawn("prometheus", [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                             "--web.listen-address=127.0.0.1:9090"], log=tmp_path / "prometheus.log", cwd=tmp_path)

    def ask(query):
        try:
            status, _, text = get(("127.0.0.1", 9090), "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        except OSError:
            return None
        if status == 503:                           # it is still starting
            return None
        answer = json.loads(text)
        assert status == 200, f"{query}: {answer}"
        return answer["data"]["result"] if answer["status"] == "success" else None

    def both_are_up():
        return sorted(r["value"][1] for r in ask("up") or []) == ["1", "1"]
    wait_until(both_are_up, 30, "Prometheus takes both")
    traffic = ask('sum(kite_traffic_bytes_total{direction="to_visitors"}) by (kite)')
    assert traffic and all(float(row["value"][1]) > 0 for row in traffic)
    for title, query in expressions():
        assert ask(query) is not None, f"{title}: {query}"


def expressions():
    """The titles and queries of the dashboard's panels, as Grafana would send them."""
    dashboard = json.loads((ROOT / "dashboards/kite.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(found) > 8
    return [(title, query.replace("$__rate_interval", "1m").replace("$instance", ".*")) for title, query in found]


def test_the_dashboard_names_no_metric_that_there_is_not():
    known, used = documented(), set()
    for title, query in expressions():
        names = set(re.findall(r"\bkite_\w+", query))
        assert names, f"{title} asks for nothing of kite's"
        assert names <= known.keys(), f"{title}: {names - known.keys()}"
        used |= names
        labels = set(re.findall(r"(\w+)\s*=~?\s*\"", query)) | set(re.findall(r"by \((.*?)\)", query))
        for label in {part.strip() for group in labels for part in group.split(",")} - {"instance", "job", ""}:
            assert any(label in known[name] for name in names), f"{title}: {label}"
    assert len(used) > 10


def test_the_numbers_are_what_happened(pair):
    _, backend, service = pair
    one = '{kite="http:web.bob.example"}'
    def settled():
        found = {role: samples(get(address, headers=OPENMETRICS)[2]) for role, address in AT.items()}
        return found if found["backend"].get("kite_visitors_total" + one) == 1 else None
    found = wait_until(settled, 10, "the visitor is counted")
    assert found["frontend"]["kite_visitors_total" + one] == 1
    refusals = {k: v for k, v in found["frontend"].items() if k.startswith("kite_refusals_total")}
    assert refusals == {'kite_refusals_total{kite="(none)",reason="not-here"}': 1}
    assert found["frontend"]["kite_backend_tunnels"] == 1
    assert found["backend"]["kite_hidden"] == 0
    states = {k: v for k, v in found["backend"].items() if k.startswith("kite_tunnel_state")}
    assert len(states) == 5 and [k for k, v in states.items() if v] == [k for k in states if 'state="up"' in k]
    assert sum(v for k, v in found["backend"].items() if k.startswith("kite_tunnel_connects_total")) == 1
    for role in AT:
        sent = found[role]['kite_traffic_bytes_total{kite="http:web.bob.example",direction="to_visitors"}']
        assert sent > 10


def test_it_is_for_this_machine_and_changes_nothing(pair, sup):
    address = AT["frontend"]
    assert get(address, "/")[0] == 404 and get(address, method="HEAD")[2] == ""
    assert get(address, method="POST")[0] == 405
    assert get(address, headers={"Host": "evil.example"})[0] == 421
    assert get(address, headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    # A slow one is cut, and heads have an end.
    with socket.create_connection(address) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
        slow.settimeout(20)
        began = time.monotonic()
        assert slow.recv(100) == b"" and time.monotonic() - began < 15
    with socket.create_connection(address) as long:
        long.settimeout(10)
        with contextlib.suppress(OSError):
            long.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000)
        with contextlib.suppress(ConnectionResetError):
            assert long.recv(100).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400", b""))
    assert get(address)[0] == 200


@pytest.mark.parametrize("place", ["0.0.0.0:9464", "192.0.2.1:9464", "example.org:80", "unix:relative", "9464"])
def test_no_other_machine_may_see_them(kite, place):
    said = run("backend", "--metrics-listen", place, "--frontend", "plain://127.0.0.1:1", "http:a.example:127.0.0.1:1",
               status=2, env={"KITE_SECRET": "secret"})
    assert "--metrics-listen" in said and "write a loopback address" in said
