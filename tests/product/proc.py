"""Processes under test: started, watched and ended one by one, by their pids.

Each has a log file of its own.  When a test fails, conftest.py prints the end
of the log of every process that had a part in it.
"""

import ctypes
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

from island import Island

PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def _die_with_parent():
    """A run that is itself killed leaves nothing behind."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Ended(AssertionError):
    """A process ended while it was waited for."""


def wait_until(condition, timeout, what, every=0.05):
    """The first true value of condition(); fails after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(every)


def reachable(address):
    """Does anybody take connections there?"""
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True


class Proc:
    """One process and its log (standard output and error together)."""

    def __init__(self, name, argv, log, machine=None, env=None, cwd=None):
        self.name, self.argv, self.log = name, [str(a) for a in argv], pathlib.Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.start_of_log = self.log.stat().st_size if self.log.exists() else 0
        machine = machine or Island()
        with open(self.log, "ab") as out, machine.inside():
            self.popen = subprocess.Popen(
                machine.command(self.argv), stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=cwd,
                env={**os.environ, **(env or {})}, start_new_session=True,
                preexec_fn=_die_with_parent)

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def text(self, since=0):
        """What this run wrote to its log, from an offset on."""
        with open(self.log, "rb") as f:
            f.seek(self.start_of_log + since)
            return f.read().decode("utf-8", "replace")

    def mark(self):
        """The present end of the log, for `since`."""
        return self.log.stat().st_size - self.start_of_log

    def wait_log(self, pattern, timeout, since=0):
        """The first match of a regular expression in the log."""
        end = time.monotonic() + timeout
        while True:
            alive = self.alive()
            found = re.search(pattern, self.text(since), re.M)
            if found:
                return found
            if not alive:
                raise Ended(f"{self.name} ended with {self.popen.returncode} before it wrote /{pattern}/\n"
                            + self.tail())
            if time.monotonic() > end:
                raise AssertionError(f"{self.name} did not write /{pattern}/ within {timeout} s\n" + self.tail())
            time.sleep(0.05)

    def wait(self, timeout):
        """The exit status."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout} s\n" + self.tail()) from None

    def stop(self, timeout=30):
        """Ask it to end; the exit status.  What does not obey is killed, and that is an error."""
        if self.alive():
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} ignored SIGTERM for {timeout} s\n" + self.tail()) from None

    def kill(self):
        """No goodbye."""
        if self.alive():
            self.popen.kill()
        self.popen.wait(5)

    def tail(self, lines=30):
        state = "running" if self.alive() else f"ended with {self.popen.returncode}"
        body = "\n".join(self.text().splitlines()[-lines:])
        return f"--- {self.name} ({state}), end of {self.log}:\n{body}"


class Supervisor:
    """The processes of one fixture; ends them all, the newest first."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.procs = []

    def spawn(self, name, argv, **more):
        more.setdefault("log", self.directory / f"{name}.log")
        proc = Proc(name, argv, **more)
        self.procs.append(proc)
        return proc

    def stop_all(self):
        """Ends everything; a process that had to be killed is reported to the caller."""
        for p in self.procs:                      # all at once, then wait: faster than in turn
            if p.alive():
                p.popen.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        stubborn = []
        for p in reversed(self.procs):
            try:
                p.popen.wait(max(0.05, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                stubborn.append(p.name)
                p.kill()
        return stubborn

    def tails(self):
        return [(p.name, p.tail()) for p in self.procs]
