"""A real Chromium, driven over WebDriver: no more of that protocol than the tests need."""

import base64
import json
import os
import pathlib
import shutil
import urllib.error
import urllib.request

from proc import reachable, wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
TAB = "\ue004"
# Nothing of its own over the network: the tests count what it asks for.
QUIET = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-default-browser-check",
         "--hide-scrollbars", "--force-color-profile=srgb"]


class Browser:
    """A browser with a window.  `names` lead to 127.0.0.1, as a rebinding name server would have it; or where they say.
    One that is `careless` shows what is behind any certificate, and lets every page ask every address."""

    def __init__(self, sup, directory, port=9515, names=(), careless=False):
        for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
            assert shutil.which(program), f"the tests need {program}: apt-get install {package}"
        self.directory = pathlib.Path(directory)
        self.base = f"http://127.0.0.1:{port}"
        home = self.directory / "browser-home"
        home.mkdir(parents=True, exist_ok=True)
        self.proc = sup.spawn("chromedriver", ["chromedriver", f"--port={port}"], log=self.directory / "chromedriver.log",
                              env={"HOME": str(home)})
        wait_until(lambda: reachable(("127.0.0.1", port)), 20, "chromedriver listens")
        args = [*QUIET, f"--user-data-dir={home / 'profile'}"]
        if careless:
            args.append("--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets")
        if names:
            places = names if isinstance(names, dict) else dict.fromkeys(names, "127.0.0.1")
            args.append("--host-resolver-rules=" + ",".join(f"MAP {name} {ip}" for name, ip in places.items()))
        wanted = {"browserName": "chrome", "acceptInsecureCerts": careless,
                  "goog:chromeOptions": {"args": args, "binary": shutil.which("chromium")},
                  "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self.session = ""
        made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{made['sessionId']}"

    def call(self, method, path, body=None):
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{method} {path}: {e.read().decode()[:500]}") from e

    def post(self, path, **body):
        return self.call("POST", self.session + path, body)

    def get(self, path):
        return self.call("GET", self.session + path)

    def go(self, url):
        self.post("/url", url=url)

    def run(self, script, *args):
        return self.post("/execute/sync", script=script, args=list(args))

    def wait_for(self, script, *args):
        """What a promise becomes."""
        return self.post("/execute/async", args=list(args),
                         script=f"const done = arguments[arguments.length - 1]; ({script}).then(done, e => done(String(e)));")

    def cdp(self, cmd, **params):
        return self.post("/goog/cdp/execute", cmd=cmd, params=params)

    def window(self, width, scheme, height=900):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def all(self, css):
        return [found[ELEMENT] for found in self.post("/elements", using="css selector", value=css)]

    def role(self, css):
        """The computed role and name, as a screen reader is told them, of all that match."""
        return [(self.get(f"/element/{e}/computedrole"), self.get(f"/element/{e}/computedlabel")) for e in self.all(css)]

    def press(self, key):
        self.post("/actions", actions=[{"type": "key", "id": "keys", "actions": [
            {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]}])

    def click(self, css):
        self.call("POST", f"{self.session}/element/{self.all(css)[0]}/click")

    def text(self, css="body"):
        return self.run("const e = document.querySelector(arguments[0]); return e && e.innerText;", css)

    def wait_text(self, css, words, timeout=15):
        return wait_until(lambda: words in (self.text(css) or ""), timeout, lambda: f"{words!r} in {self.text()!r}")

    def log(self, kind):
        """What came into this log since it was last read, but for what the browser's own first page said."""
        return [entry for entry in self.post("/se/log", type=kind) if not entry["message"].startswith("chrome://")]

    def asked(self):
        """The URLs that were asked for since the last look."""
        events = (json.loads(entry["message"])["message"] for entry in self.log("performance"))
        urls = (e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent")
        return [url for url in urls if not url.startswith("chrome://")]

    def failures(self):
        """Why requests since the last look came to nothing: by whose rule, or else in the network's words."""
        events = (json.loads(entry["message"])["message"] for entry in self.log("performance"))
        failed = [e["params"] for e in events if e["method"] == "Network.loadingFailed"]
        return [params.get("blockedReason") or params["errorText"] for params in failed]

    def picture(self, name):
        """A screenshot of the whole page, for people: in $KITE_SCREENSHOTS, if that is set."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return window.innerWidth")
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=True,
                        clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        directory = pathlib.Path(os.environ.get("KITE_SCREENSHOTS", self.directory))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def overflow(self):
        """How much wider than the window the page is."""
        return self.run("return document.documentElement.scrollWidth - window.innerWidth")

    def pale(self):
        """Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3)."""
        return self.run("""
            const number = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
            const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
            const behind = (e) => { for (; e; e = e.parentElement) {
                const c = number(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c; }
                return [255, 255, 255]; };
            const found = [];
            for (const e of document.querySelectorAll('body *')) {
                const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
                if (!own || !e.checkVisibility()) continue;
                const [a, b] = [light(number(getComputedStyle(e).color)), light(behind(e))];
                const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
                if (ratio < 4.5) found.push(e.textContent.trim().slice(0, 40) + ': ' + ratio.toFixed(2));
            }
            return found;""")

    def close(self):
        if self.session:
            self.call("DELETE", self.session)
