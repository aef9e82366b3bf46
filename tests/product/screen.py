"""A program on a terminal of its own, and what it shows there."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

MOVES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78]")
COLOURS = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|38;[0-9;]+|9[0-7])m")


class Terminal:
    """Runs `argv` on a new terminal; `shown` is all that it wrote, without what moves the cursor."""

    def __init__(self, argv, env=None, rows=50, columns=160):
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self.proc = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
        self.theirs, self.raw = theirs, b""

    def resize(self, rows, columns):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds=0.2):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.ours], [], [], 0.05)[0]:
                self.raw += os.read(self.ours, 65536)

    @property
    def shown(self):
        return MOVES.sub(b" ", self.raw).decode(errors="replace")

    def wait(self, *words, timeout=15):
        end = time.monotonic() + timeout
        while not all(word in self.shown for word in words):
            assert time.monotonic() < end and self.proc.poll() is None, f"{words} in {self.shown}"
            self.read()

    def press(self, keys):
        os.write(self.ours, keys)

    def ended(self, timeout=10):
        """Its exit status, and whether the terminal is as it was."""
        end = time.monotonic() + timeout
        while self.proc.poll() is None:
            assert time.monotonic() < end, self.shown
            self.read()
        self.read()
        return self.proc.returncode, termios.tcgetattr(self.theirs) == self.before

    def close(self):
        if self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait()
        os.close(self.ours)
        os.close(self.theirs)
