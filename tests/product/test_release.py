"""What a release is made of, and that none is made of a tree in which two places do not agree."""

import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import time
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
EPOCH = 1767225600


@pytest.fixture(scope="module")
def program(kite, tmp_path_factory):
    """Small, so that nobody waits for it to be compressed.  The program itself is packed in test_debian_package.py."""
    path = tmp_path_factory.mktemp("program") / "kite"
    path.write_text(f'#!/bin/sh\nexec {os.path.abspath(kite)} "$@"\n')
    path.chmod(0o755)
    return path


def release(tree, *args, program, status=0):
    done = subprocess.run([tree / "packaging" / "release", *map(str, args)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "KITE": str(program), "KITE_STATIC": str(program), "SOURCE_DATE_EPOCH": str(EPOCH),
                               "KITE_DEB_OPTIONS": "-Zgzip -z1"})
    assert done.returncode == status, f"exit status {done.returncode}, not {status}\n{done.stdout}{done.stderr}"
    return done.stderr


@pytest.fixture(scope="module")
def made(program, tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "files"
    release(ROOT, "--dry-run", out, program=program)
    return out


def test_its_files_have_checksums(made):
    sums = dict(reversed(line.split("  ")) for line in (made / "SHA256SUMS").read_text().splitlines())
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                    for path in made.iterdir() if path.name != "SHA256SUMS"}
    assert [name for name in sums if re.fullmatch(rf"kite_.*{re.escape(VERSION)}.*\.deb", name)]
    assert f"kite-{VERSION}.cdx.json" in sums


def archive(made, kind="gnu"):
    (path,) = made.glob(f"kite-{VERSION}-*-{kind}.tar.gz")
    return path


@pytest.mark.parametrize("kind", ["gnu", "musl"])
def test_the_archive_has_all_that_a_user_needs(made, kind):
    with tarfile.open(archive(made, kind)) as tar:
        members = {member.name.removeprefix(f"kite-{VERSION}/"): member for member in tar if member.isfile()}
    man = {f"share/man/man1/{page.name}" for page in (ROOT / "docs" / "man").glob("*.1")}
    assert members.keys() >= man | {
        "bin/kite", "share/doc/kite/LICENSE-MIT", "share/doc/kite/LICENSE-APACHE", "share/doc/kite/README.md",
        "share/bash-completion/completions/kite", "share/zsh/site-functions/_kite",
        "share/fish/vendor_completions.d/kite.fish", "share/doc/kite/examples/backend.toml"}
    assert members["bin/kite"].mode == 0o755
    assert {(m.uid, m.gid, m.mtime) for m in members.values()} == {(0, 0, EPOCH)}


def test_the_same_tree_gives_the_same_archive(made, program, tmp_path):
    """And the same list of what it is made of.  (What is compared is not what a second run copied from the first.)"""
    release(ROOT, "--dry-run", tmp_path / "again", program=program)
    for path in (archive(made), archive(made, "musl"), made / f"kite-{VERSION}.cdx.json"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert gzip.open(archive(made)).read(1)


def test_what_it_is_made_of(made):
    """The fields that CycloneDX 1.5 demands, and each crate of the lock file that is linked."""
    bom = json.loads((made / f"kite-{VERSION}.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.5", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", bom["serialNumber"])
    assert bom["metadata"]["component"]["name"] == "kite" and bom["metadata"]["timestamp"] == "2026-01-01T00:00:00Z"
    refs = [c["bom-ref"] for c in bom["components"]]
    assert len(refs) == len(set(refs)) > 200
    locked = {(p["name"], p["version"]): p for p in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
    for component in bom["components"]:
        assert component["type"] == "library" and component["name"] and component["purl"] == component["bom-ref"]
        package = locked[component["name"], component["version"]]
        assert component["licenses"][0]["expression"]
        if "source" in package:
            assert component["hashes"] == [{"alg": "SHA-256", "content": package["checksum"]}]
    names = {c["name"] for c in bom["components"]}
    assert {"arti-client", "rustls", "tokio"} <= names
    assert "proptest" not in names, "that is for the tests only"
    known = {*refs, bom["metadata"]["component"]["bom-ref"]}
    assert {d["ref"] for d in bom["dependencies"]} == known
    assert all(set(d["dependsOn"]) <= known for d in bom["dependencies"])


@pytest.fixture
def tree(tmp_path):
    """A copy of what the checks read, committed, tagged, and with a heading for the version: ready."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("Cargo.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tree)
    for name in ("packaging", "debian"):
        shutil.copytree(ROOT / name, tree / name)
    changelog = tree / "CHANGELOG.md"
    changelog.write_text(f"# Changelog\n\n## [{VERSION}] - 2026-01-01\n")
    debian = tree / "debian" / "changelog"
    debian.write_text(re.sub(r"\(.*?\)", f"({VERSION})", debian.read_text(), count=1))
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message=ready")
    git(tree, "tag", f"v{VERSION}")
    return tree


def git(tree, *args):
    who = ("-c", "user.name=a", "-c", "user.email=a@example", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
    subprocess.run(["git", *who, *args], cwd=tree, check=True, capture_output=True)


def spoil_changelog(tree):
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n")
    git(tree, "commit", "--quiet", "--all", "--message=more")
    git(tree, "tag", "--force", f"v{VERSION}")


def spoil_version(tree):
    manifest = tree / "Cargo.toml"
    manifest.write_text(manifest.read_text().replace(f'version = "{VERSION}"', 'version = "9.9.9"', 1))
    git(tree, "commit", "--quiet", "--all", "--message=more")


def spoil_tag(tree):
    git(tree, "commit", "--quiet", "--allow-empty", "--message=more")


def spoil_tree(tree):
    (tree / "CHANGELOG.md").write_text((tree / "CHANGELOG.md").read_text() + "\nmore\n")


@pytest.mark.parametrize("spoil, complaints", [
    (spoil_changelog, ["CHANGELOG.md has no heading"]),
    (spoil_version, ["CHANGELOG.md has no heading '## [9.9.9]", "debian/changelog begins with", "the tag v9.9.9 is not on"]),
    (spoil_tag, ["the tag v"]),
    (spoil_tree, ["not committed"]),
])
def test_what_does_not_fit_is_said_and_nothing_is_made(tree, tmp_path, spoil, complaints):
    spoil(tree)
    said = release(tree, tmp_path / "out", program="/bin/true", status=1)
    assert all(complaint in said for complaint in complaints)
    assert said.count("packaging/release: ") == len(complaints) + 1
    assert not (tmp_path / "out").exists()


def test_a_tree_that_fits_gets_past_the_checks(tree, tmp_path):
    """As far as the program, which must be of this version."""
    said = release(tree, tmp_path / "out", program="/bin/true", status=1)
    assert said.count("packaging/release: ") == 1 and f"not kite {VERSION}" in said


# --------------------------------------------------------------------------------------------- advisories

# What cargo-deny does with a configuration: fetches the database, and finds what is in it.
DENY = """#!/bin/sh
[ "$1 $2" = "deny --version" ] && exit 0
config=$4
path=$(sed -n 's/^db-path = "\\(.*\\)"/\\1/p' "$config")
[ -n "${GIT_CONFIG_COUNT:-}" ] || { echo "no network" >&2; exit 1; }
grep -q RUSTSEC-2023-0071 "$config" || { echo "the project's rules are lost" >&2; exit 9; }
git clone --quiet --depth=1 --branch main https://github.com/RustSec/advisory-db "$path/advisory-db-1"
! grep -r . "$path/advisory-db-1/crates/tokio" >&2
"""


@pytest.fixture
def database(tmp_path):
    """Makes RustSec's database, as it was so many days ago; what is known of tokio is in it."""
    def make(days, known=""):
        base = tmp_path / f"database-{days}"
        (base / "crates" / "tokio").mkdir(parents=True)
        (base / "crates" / "tokio" / "RUSTSEC-2099-0001.md").write_text(known)
        git(base, "init", "--quiet", "--initial-branch=main")
        git(base, "add", ".")
        when = f"{int(time.time()) - days * 86400} +0000"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_COMMITTER_DATE", when)
            git(base, "commit", "--quiet", "--message=known")
        return base
    return make


def advisories(tmp_path, *args):
    """Its exit status, and what it said."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "cargo").write_text(DENY)
    (tools / "cargo").chmod(0o755)
    done = subprocess.run([ROOT / "packaging" / "advisories", *args], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"})
    return done.returncode, done.stdout + done.stderr


def test_advisories_come_from_a_copy_and_an_old_one_is_no_answer(tmp_path, database):
    """A checkout, or a bundle of one.  (cargo-deny itself is not run here; docs/supply-chain.md has when it was.)"""
    fresh = database(3)
    bundle = tmp_path / "advisory-db.bundle"
    git(fresh, "bundle", "create", str(bundle), "main", "HEAD")
    for copy in (fresh, bundle):
        status, said = advisories(tmp_path, copy)
        assert status == 0 and ", 3 days old" in said, said
    status, said = advisories(tmp_path, database(4, known="it is unsafe"))
    assert status == 1 and "RUSTSEC-2099-0001.md:it is unsafe" in said and ", 4 days old" in said
    status, said = advisories(tmp_path, database(31))
    assert status == 2 and "too old" in said
    status, said = advisories(tmp_path)
    assert status == 2 and "there is no database" in said
    status, said = advisories(tmp_path, __file__)
    assert status == 2 and "no checkout or bundle" in said


# ------------------------------------------------------------------------------------------------- the build

def test_no_page_names_a_version_of_the_package():
    """It would be that of the last release, at most."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"kite[_-]\d+\.\d+\.\d+", page.read_text()), page


# What cargo and rustc were told, in place of a build.
TOLD = """#!/bin/sh
case "$(basename "$0") $1 $2" in
    "rustc -vV "*) echo "host: x86_64-unknown-linux-gnu" ;;
    "rustc --print "*) echo / ;;
    "cargo auditable --version") ;;
    "cargo auditable build")
        { echo "$@"; echo "$RUSTFLAGS"; echo "$CFLAGS"; echo "$SOURCE_DATE_EPOCH"; } >"$TOLD"
        mkdir -p "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release"
        touch "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/kite" ;;
    *) exit 9 ;;
esac
"""


def test_a_build_names_no_place_and_takes_the_commits_time(tmp_path):
    """What it takes for the same bytes; that it is enough was tried by packaging/reproduce (docs/supply-chain.md)."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cargo", "rustc"):
        (tools / name).write_text(TOLD)
        (tools / name).chmod(0o755)
    told = tmp_path / "told"
    done = subprocess.run([ROOT / "packaging" / "build"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "TOLD": str(told), "CARGO_HOME": "/home/a/.cargo",
                               "SOURCE_DATE_EPOCH": str(EPOCH), "CARGO_TARGET_DIR": str(tmp_path / "made")})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/made/x86_64-unknown-linux-gnu/release/kite\n"
    words, rust, c, epoch = told.read_text().splitlines()
    assert words == "auditable build --release --locked --bin kite --target x86_64-unknown-linux-gnu"
    for flags, name in ((rust, "--remap-path-prefix"), (c, "-ffile-prefix-map")):
        for place, shown in ((ROOT, "/kite"), ("/home/a/.cargo", "/cargo"), (tmp_path / "made", "/target")):
            assert f"{name}={place}={shown}" in flags.split()
    assert epoch == str(EPOCH)
