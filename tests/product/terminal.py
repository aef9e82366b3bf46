"""A program on a terminal of its own, and somebody who types."""

import os
import pty
import re
import select
import signal
import subprocess
import time

import fcntl
import termios


class Terminal:
    """`expect` waits for words on the screen, `type` types a line."""

    def __init__(self, argv, env=None, cwd=None):
        ours, theirs = pty.openpty()
        # Wide enough that no line is broken.
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x32\x00\xe8\x03\0\0\0\0")

        def lead():
            # What runs in the background of a script ignores Ctrl-C, and so would its children.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        base = {k: v for k, v in os.environ.items() if not k.startswith("KITE")}
        self.proc = subprocess.Popen([*map(str, argv)], stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lead,
                                     env={**base, "TERM": "xterm", **(env or {})}, cwd=cwd)
        os.close(theirs)
        self.ours, self.screen, self.seen = ours, "", 0

    def _read(self, wait):
        if not select.select([self.ours], [], [], wait)[0]:
            return True
        try:
            data = os.read(self.ours, 65536)
        except OSError:                 # the other side is gone
            data = b""
        self.screen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def expect(self, words, timeout=30):
        """Waits until this stands on the screen behind what was waited for last; the match."""
        end, more = time.monotonic() + timeout, True
        while True:
            found = re.search(words, self.screen[self.seen:])
            if found:
                self.seen += found.end()
                return found
            assert more and time.monotonic() < end, f"no /{words}/ on the screen:\n{self.screen}"
            more = self._read(0.2)

    def type(self, line):
        os.write(self.ours, line.encode() + b"\n")

    def answer(self, question, line):
        self.expect(question)
        self.type(line)

    def answer_hidden(self, question, line, timeout=10):
        """The same where nothing is to be seen: what is typed before the echo is off is thrown away."""
        self.expect(question)
        end = time.monotonic() + timeout
        while termios.tcgetattr(self.ours)[3] & termios.ECHO:
            assert time.monotonic() < end, f"what is typed would be seen:\n{self.screen}"
            time.sleep(0.01)
        self.type(line)

    def key(self, byte):
        os.write(self.ours, byte)

    def end(self, timeout=15):
        """The exit status, once it has ended."""
        limit = time.monotonic() + timeout
        while self.proc.poll() is None and time.monotonic() < limit:
            self._read(0.1)
        while self._read(0) and select.select([self.ours], [], [], 0)[0]:
            pass
        assert self.proc.poll() is not None, f"it goes on:\n{self.screen}"
        return self.proc.returncode

    def close(self):
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            try:
                self.proc.wait(15)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()
        os.close(self.ours)
