"""A newcomer with nothing but README.md gets a private grid node; and the quick start for a node, both through Tor.

What is typed and shown is in the pages (book.py). The node is a real Tahoe-LAFS node on a machine of its own, which sends
to Tor's relays alone; a client of the grid that has neither kite nor Tor stores a file there.
"""

import secrets

import names
from book import World
from conftest import ALICE, CAROL
from island import VISITOR
from kite import Frontend, Kite, secret_file
from proc import wait_until
from tahoe import START_S, TAHOE, TUB_PORT, Client, Introducer, create
from traffic import random_bytes

NAME = "tahoebob.alice.example"
INTRODUCER = "10.77.5.2"
HOSTS = {"alice.example": ALICE, "carol.example": CAROL, NAME: ALICE, "tahoebob.carol.example": CAROL,
         "intro.newcomer.example": INTRODUCER}
PINS = {"alice": "9X5X5Yf25dMftN-MbXSQ4KVVGvHu1-aDouLGKUQCrTQ", "carol": "TKZn378RbRpNnR2tSdqPL9EoUkmRcQFmxQLMmbNq4T8"}


def world(sup, tornet, machine):
    """Bob's machine is hidden behind a cable, and its Tor is the private network's."""
    tornet.names.update(HOSTS)
    arti = tornet.arti_toml(sup.directory / "arti")
    hidden = machine()
    # Tahoe ends with its terminal, and has none here.
    replace = {"tahoe run ": "tahoe run --allow-stdin-close ", "enabled = true ": f'enabled = true\nconfig = "{arti}" ',
               "join --via-tor ": f"join --via-tor --tor-config {arti} "}
    place = World(sup, {"alice": ALICE, "node": "127.0.0.1", "visitor": VISITOR}, HOSTS, replace, {"node": hidden})
    return place, hidden


def node(directory, furl):
    """As `tahoe create-node` makes it for somebody who has read nothing."""
    create("create-node", "--nickname=bob", "--webport=none", f"--introducer={furl}", f"--port=tcp:{TUB_PORT}",
           f"--location=tcp:bob.example:{TUB_PORT}", directory)


def run_once(sup, directory):
    """It has a key from then on, and with it a tub's name."""
    once = sup.spawn("before-kite", [TAHOE, "run", "--allow-stdin-close", directory], env=names.environment(HOSTS))
    wait_until((directory / "my_nodeid").exists, START_S, once.tail)
    once.wait_log("client running", START_S)
    once.stop()


def only_relays(hidden, tornet):
    strangers = hidden.log.dials() - tornet.relays
    assert not strangers, f"the node's machine sent to {strangers}"


def test_from_the_readme_to_a_private_node(kite, sup, tornet, machine):
    place, hidden = world(sup, tornet, machine)
    introducer = Introducer(sup, sup.directory / "introducer", HOSTS, "intro.newcomer.example", INTRODUCER).run()
    home = place.machines["node"].home
    node(home / ".tahoe", introducer.furl)
    run_once(sup, home / ".tahoe")
    # What Alice has given him.
    (place.machines["alice"].home / "invitation").symlink_to(home / "invitation")
    place.run("README.md")
    client = Client(sup, sup.directory / "client", HOSTS, introducer.furl, shares=(1, 1, 1)).run()
    client.wait_connected(1)
    data = random_bytes(1, 100_000)
    assert client.download(client.upload(data)) == data
    only_relays(hidden, tornet)


def test_the_quick_start_for_a_node(kite, sup, tornet, machine):
    place, hidden = world(sup, tornet, machine)
    home = place.machines["node"].home
    for friend, ip in (("alice", ALICE), ("carol", CAROL)):
        granted = Kite("foolscap", f"tahoebob.{friend}.example", None, secrets.token_hex(32))
        place.learned[PINS[friend]] = Frontend(sup, f"{friend}s", ip, [granted]).start().pin
        secret_file(home / f"{friend}.secret", granted.secret)
    introducer = Introducer(sup, sup.directory / "introducer", HOSTS, "intro.newcomer.example", INTRODUCER).run()
    for name in (".tahoe", "other-node"):
        node(home / name, introducer.furl)
    place.run("docs/quick-start-node.md")
    only_relays(hidden, tornet)
