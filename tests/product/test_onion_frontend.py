"""`kite frontend --onion`: backends come in through an onion service, in which no exit and no address has a part."""

import os

import foolscap_peer
from conftest import new_address
from kite import LOST, TOR_READY, TOR_S, Backend, Frontend, Kite
from traffic import MIB

RETURN_S = 150         # the service is published again, and the backend's wait is over


def test_onion_frontend(kite, sup, machine, tornet):
    """It carries foolscap, learns no address, and has the same name after a restart."""
    ip, hidden, name = new_address(), machine(), "tub.bob.example"
    tub = foolscap_peer.TubOrigin(sup, hidden, name)
    service = Kite("foolscap", name, tub.address)
    frontend = Frontend(sup, "frontend", ip, [service], onion=tornet.arti_toml(sup.directory / "frontend-tor")).start()
    onion = frontend.wait_onion()
    # Its ports are open before Tor is up, and what it says of them comes first.
    log = frontend.proc.text()
    assert log.index("listening on") < log.index("backends dial") < log.index(TOR_READY)
    said = frontend.status()
    assert onion in said["addresses"] and said["tor"]["state"] == "working"
    backend = Backend(sup, "backend", [onion], [service], machine=hidden,
                      via_tor=tornet.arti_toml(sup.directory / "backend-tor")).start()
    backend.wait_up(service, onion, timeout=RETURN_S)
    frontend.wait_up(service)
    hosts = {name: ip}
    foolscap_peer.exchange(sup, tub.furl, hosts, seed=1, size=MIB)

    since = backend.proc.mark()
    frontend.stop()
    backend.wait_line(LOST, onion, since=since, timeout=60)
    since = backend.proc.mark()
    frontend.start()
    assert frontend.wait_onion() == onion
    backend.wait_up(service, onion, since=since, timeout=RETURN_S)
    frontend.wait_up(service)
    foolscap_peer.exchange(sup, tub.furl, hosts, seed=2, size=MIB)

    backend.stop()
    log = frontend.proc.log.read_text()
    assert log.count("tunnel from an onion circuit (") >= 2
    assert not any(address in log for address in [hidden.address, *tornet.exits])
    assert hidden.log.dials() <= tornet.relays

    # A key that is spoiled is no reason for another name.
    frontend.stop()
    (key,) = (sup.directory / "frontend-tor").rglob("ks_hs_id.*")
    good = key.read_bytes()
    for spoiled in (b"", good[: len(good) // 2], os.urandom(len(good))):
        key.write_bytes(spoiled)
        frontend.spawn()
        assert frontend.proc.wait(TOR_S) == 1
        said = frontend.proc.text()
        assert "KITE-T12" in said and "from a backup" in said and key.read_bytes() == spoiled, said
    key.write_bytes(good)
