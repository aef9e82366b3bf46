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
                          env={**os.environ, "KITE": str(program), "SOURCE_DATE_EPOCH": str(EPOCH),
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


def archive(made):
    (path,) = made.glob(f"kite-{VERSION}-*.tar.gz")
    return path


def test_the_archive_has_all_that_a_user_needs(made):
    with tarfile.open(archive(made)) as tar:
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
    for path in (archive(made), made / f"kite-{VERSION}.cdx.json"):
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
