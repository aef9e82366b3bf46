"""README.md and docs/ as a script: every command block is run as it is written, and what the page shows is compared.

A page's fenced blocks, in their order:

    console     lines that begin with "$ " are commands, the others what they print
    sh          commands whose output does not matter
    toml, ini   a file, if the first line is a comment with its name; else, what the last command printed
    text        for the eye: a diagram, a part of a log

Comments before a block say the rest; they are not seen by a reader:

    <!-- on: alice -->          from here on, on this machine; each has a home and an address of its own
    <!-- status: 1 -->          the block's last command ends with this, not with 0
    <!-- not run: REASON -->    the block is not run; its commands are only parsed

In what a page shows, "…" stands for anything, and so do the values that differ each time (VARIES). A pin or an onion
address that a page shows is learned when kite prints the real one, and put into the commands that follow, as a user
would copy it.
"""

import os
import pathlib
import re
import shlex
import subprocess
from dataclasses import dataclass, field

from kite import binary
from proc import wait_until

ROOT = pathlib.Path(__file__).parents[2]
COMMAND_S = 60                # one command
SERVICE_S = 90                # what a frontend or a backend is to say
SERVICE = re.compile(r"^(kite (frontend|backend)(?! (kites|invite|invitations|join))|tahoe run)\b")

# What is another value each time. The first two are learned.
VARIES = [
    ("pin", r"(?<=#sha256:)[A-Za-z0-9_-]{43}\b", r"[A-Za-z0-9_-]{43}"),
    ("onion", r"\b[a-z2-7]{56}(?=\.onion)", r"[a-z2-7]{56}"),
    ("tub", r"\b[a-z2-7]{32}\b", r"[a-z2-7]{32}"),
    ("secret", r"\b[0-9a-f]{64}\b", r"[0-9a-f]{64}"),
    ("port", r"(?<=127\.0\.0\.1:)[345]\d{4}\b", r"\d+"),
    ("amount", r"\b\d+(\.\d+)? (ms|s|bytes)\b", r"\d+(\.\d+)? (ms|s|bytes)"),
    ("used", r"\bused \d+[KMGT]B", r"used \d+[KMGT]B"),
    ("date", r"\b20\d\d-\d\d-\d\d\b", r"20\d\d-\d\d-\d\d"),
    ("hex", r"(?<= )[0-9a-f]{8}(?=\")", r"[0-9a-f]{8}"),
]
LEARNED = ("pin", "onion")


@dataclass
class Block:
    page: str
    line: int
    language: str
    text: str
    machine: str
    status: int
    reason: str | None

    @property
    def where(self):
        return f"{self.page}:{self.line}"

    def steps(self):
        """Its commands, each with the lines that it is to print."""
        steps, lines = [], iter(self.text.splitlines())
        for line in lines:
            if self.language == "sh" or line.startswith("$ "):
                command = line.removeprefix("$ ")
                while command.endswith("\\"):
                    command = command[:-1] + next(lines).strip()
                if command.strip() and not command.startswith("#"):
                    steps.append((command, []))
            else:
                assert steps, f"{self.where}: a console block begins with a command"
                steps[-1][1].append(line)
        return steps


def pages():
    """Every page that is written for users."""
    return ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


def blocks(page):
    """The fenced blocks of a page."""
    found, fence, machine, status, reason = [], None, "node", 0, None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        if fence is None:
            if said := re.match(r"\s*<!-- (on|status|not run): (.*) -->$", line):
                if said[1] == "on":
                    machine = said[2]
                elif said[1] == "status":
                    status = int(said[2])
                else:
                    reason = said[2]
            elif said := re.match(r"(\s*)```(\w*)$", line):
                fence = (number, said[1], said[2], [])
            continue
        at, indent, language, lines = fence
        if line == indent + "```":
            found.append(Block(page, at, language, "\n".join(lines), machine, status, reason))
            fence, status, reason = None, 0, None
        else:
            lines.append(line.removeprefix(indent))
    assert fence is None, f"{page}: a block is not closed"
    return found


def commands(page):
    """The blocks of a page that are commands."""
    return [b for b in blocks(page) if b.language in ("console", "sh")]


@dataclass
class Machine:
    """Somebody's computer in a book: a home, an address, and an /etc/hosts of the book's world."""

    home: pathlib.Path
    address: str
    hosts: pathlib.Path
    path: str
    inside: object = None                # the machine of island.py that it is on, if it is hidden

    def argv(self, command):
        # Only /etc/hosts is its own; the process stays on the island, or on its hidden machine.
        bind = 'mount --bind "$0" /etc/hosts && exec bash -c "$1"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", bind, self.hosts, command]

    def env(self):
        # As root kite would use /etc/kite.
        own = {"HOME": str(self.home), "CONFIGURATION_DIRECTORY": f"{self.home}/.config/kite", "PATH": self.path,
               "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
        return {**{k: v for k, v in os.environ.items() if not k.startswith(("KITE", "XDG"))}, **own}


@dataclass
class World:
    """What a page happens in. `replace` is what the page says and this world must have otherwise; `hosts` maps names to
    addresses; `addresses` maps machines to theirs."""

    sup: object
    addresses: dict
    hosts: dict
    replace: dict = field(default_factory=dict)
    hidden: dict = field(default_factory=dict)

    def __post_init__(self):
        self.sup.directory.mkdir(parents=True, exist_ok=True)
        hosts = self.sup.directory / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in self.hosts.items()))
        tools = self.sup.directory / "bin"
        tools.mkdir(exist_ok=True)
        (tools / "kite").symlink_to(pathlib.Path(binary()).resolve())
        venv = pathlib.Path(os.sys.executable).parent
        (tools / "tahoe").symlink_to(venv / "tahoe")
        path = f"{tools}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.machines, self.services, self.learned, self.printed = {}, {}, {}, {}
        for name, address in self.addresses.items():
            home = self.sup.directory / name
            home.mkdir()
            self.machines[name] = Machine(home, address, hosts, path, self.hidden.get(name))

    def here(self, text, machine):
        """A text of the book as it must be in this world."""
        home = str(machine.home)
        own = {"0.0.0.0:": f"{machine.address}:", "/var/lib/kite": f"{home}/var", "/etc/kite": f"{home}/etc-kite",
               "/etc/pagekite.d": f"{home}/pagekite.d", "/home/bob": home}
        for said, true in {**self.replace, **own, **self.learned}.items():
            text = text.replace(said, true)
        return text

    def run(self, page):
        """All blocks of a page, in their order."""
        for block in blocks(page):
            if block.reason is None:
                self.block(block)

    def block(self, block):
        machine = self.machines[block.machine]
        if block.language in ("toml", "ini"):
            self.write(block, machine)
        if block.language in ("console", "sh"):
            steps = block.steps()
            for i, (command, shown) in enumerate(steps):
                status = block.status if i == len(steps) - 1 else 0
                self.step(block, machine, command, shown, status)

    def write(self, block, machine):
        """A file that the page shows, under the name in its first line; or what was printed."""
        name = re.match(r"# (~/|/etc/)?([\w./-]+\.(toml|rc|cfg|service))$", block.text.splitlines()[0])
        text = self.here(block.text, machine)
        if not name:
            self.compare(block.where, block.text.splitlines(), self.printed.get(block.machine, ""), machine)
            return
        file = pathlib.Path(self.here((name[1] or "").replace("~", str(machine.home)) + name[2], machine))
        file = machine.home / file
        if file.is_relative_to(machine.home):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

    def step(self, block, machine, command, shown, status):
        where, line = f"{block.where}: $ {command}", self.here(command, machine)
        if SERVICE.match(command):
            kind = (block.machine, command.split()[1])
            self.stop(kind)
            name = f"{block.machine}-{len(self.sup.procs)}"
            self.services[kind] = self.sup.spawn(name, machine.argv("exec " + line), machine=machine.inside,
                                                 cwd=machine.home, env=machine.env())
            self.follow(where, shown, self.services[kind], machine)
            return
        kwargs = dict(capture_output=True, text=True, timeout=COMMAND_S, cwd=machine.home, env=machine.env(),
                      stdin=subprocess.DEVNULL)
        if machine.inside:
            with machine.inside.inside():
                done = subprocess.run(machine.argv(line), **kwargs)
        else:
            done = subprocess.run(machine.argv(line), **kwargs)
        said = done.stdout + done.stderr
        assert done.returncode == status, f"{where}\nexit status {done.returncode}, not {status}\n{said}"
        self.printed[block.machine] = said
        if shown:
            self.compare(where, shown, said, machine)

    def stop(self, kind):
        if old := self.services.pop(kind, None):
            assert old.stop() == 0, old.tail()

    def pattern(self, line, machine):
        """What a line of the page is a picture of."""
        line, names, held = self.here(line.strip(), machine), [], []

        def hold(pattern):
            held.append(pattern)
            return f"\0{len(held) - 1}\0"

        for kind, varies, pattern in VARIES:
            def vary(found, kind=kind, pattern=pattern):
                if found[0] in self.learned.values():
                    return found[0]
                if kind in LEARNED:
                    names.append(found[0])
                    return hold(f"({pattern})")
                return hold(re.sub(r"\((?!\?)", "(?:", pattern))
            line = re.sub(varies, vary, line)
        line = line.replace("…", hold(".*"))
        pattern = r"\s+".join(re.escape(word).replace("\0", "\0") for word in line.split())
        pattern = re.sub("\\\\?\0(\\d+)\\\\?\0", lambda m: held[int(m[1])], pattern)
        return r"^\s*(?:20\S+\s+(?:\[-\]\s+)?)?" + pattern + r"\s*$", names

    def learn(self, names, found):
        for said, true in zip(names, found.groups(), strict=True):
            self.learned[said] = true
            self.learned[said[:4] + "…"] = true[:4] + "…"        # as a page may shorten it

    def compare(self, where, shown, said, machine):
        """Line by line, in order; a line that is only "…" stands for any number of them."""
        rest, free = [line for line in said.splitlines() if line.strip()], False
        for line in filter(str.strip, shown):
            if line.strip() == "…":
                free = True
                continue
            pattern, names = self.pattern(line, machine)
            at = next((i for i, real in enumerate(rest) if re.match(pattern, real)), None)
            assert at is not None and (free or at == 0), f"{where}\nthe page says: {line}\nkite said:\n{said}"
            self.learn(names, re.match(pattern, rest[at]))
            rest, free = rest[at + 1:], False
        assert free or not rest, f"{where}\nthe page does not say:\n" + "\n".join(rest)

    def follow(self, where, shown, proc, machine):
        """What a service says in time, in this order, with whatever else in between."""
        since = 0
        for line in filter(str.strip, shown):
            if line.strip() == "…":
                continue
            pattern, names = self.pattern(line, machine)
            found = proc.wait_log(pattern, SERVICE_S, since)
            since += len(proc.text(since)[:found.end()].encode())
            self.learn(names, found)
        if not shown:
            wait_until(proc.alive, 1, lambda: f"{where}\n{proc.tail()}")


def kite_lines(block):
    """The command lines of kite in a block that is not run, as words."""
    for command, _ in block.steps():
        for part in re.split(r"[|;&]|\$\(", command):
            words = shlex.split(part, comments=True) if part.count("'") % 2 == 0 and part.count('"') % 2 == 0 else []
            if words and pathlib.PurePath(words[0]).name == "kite":
                yield [w for w in words[1:] if w not in (">", "<")]
