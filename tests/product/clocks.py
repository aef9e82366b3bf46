"""Clocks that a test sets while programs run, by libfaketime."""

import glob
import os


def library():
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not found:
        raise RuntimeError("the tests need libfaketime: apt-get install faketime")
    return found[0]


class Clock:
    """A clock that some processes live by, `ahead` seconds before the real one.

    For those that `sleep` time itself stands still when it is set, as in a machine that sleeps; for others it passes,
    and whatever they do by a timer falls due. One that is `fast` goes so many times as fast as the real one.
    """

    def __init__(self, ahead=0, sleep=False, fast=1):
        self.ahead, self.sleep, self.fast, self._files = ahead, sleep, fast, []

    def environment(self, directory):
        """Of a process whose sandbox lets it read there."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = directory / "clock"
        self._files.append(file)
        self._write(file)
        return {"LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_CACHE_DURATION": "1",
                **({"FAKETIME_DONT_FAKE_MONOTONIC": "1"} if self.sleep else {})}

    def advance(self, seconds):
        self.ahead += seconds
        for file in self._files:
            self._write(file)

    def _write(self, file):
        new = file.with_suffix(".new")         # nobody reads half of it
        new.write_text(f"{self.ahead:+d}s" + (f" x{self.fast}" if self.fast != 1 else ""))
        os.replace(new, file)
