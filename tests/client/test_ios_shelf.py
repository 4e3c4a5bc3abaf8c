"""How the Swift source keeps versions of a model; it cannot be run here, so it is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.delivery.versions import _TAKEN
from common.signing.statement import NAME_PATTERN

FOLDER = Path(__file__).parents[2] / "client/ios/Sources/Fedhead"
SWIFT = {name: (FOLDER / f"{name}.swift").read_text() for name in ("Models", "Disk")}

# What a kill, the disk or a name may do, by file: what stands there against it.
RULES = {
    "the same in a name": ("Models", r"guard name\.utf8\.allSatisfy\(\{ \$0 < 128 \}\) else "),
    "names of a version's own files": (
        "Models",
        r"guard !Self\.taken\.contains\(name\.lowercased\(\)\) else \{\n"
        r" +throw .*: each version has such a file of its own\"",
    ),
    "a kill while a file is put in place": (
        "Disk",
        r"guard rename\(file\.path, place\.path\) == 0 ",
    ),
    "a name that leads elsewhere": (
        "Models",
        r"guard Self\.isSafe\(name\) else \{\n +throw .*: a letter or digit, then at most 99 ",
    ),
    "a version that keys have never seen": (
        "Models",
        r"return \(version: version, sha256: String\(found\.prefix\(64\)\)\)",
    ),
    "a version whose sums are lost": (
        "Models",
        r"guard let found = sums\(version\) else \{ return \(version: 0, ",
    ),
    "a current version without its sums": (
        "Models",
        r"\.write\(Self\.sumsNote, Data\(sums\.utf8\)\)\n(.*\n)+ +try replace\(.*\"current\"\)",
    ),
    "a version in use that was damaged": (
        "Models",
        r"let version = current\n +guard isWhole\(version\) else \{ return nil \}\n",
    ),
    "a damaged version to go back to": (
        "Models",
        r"let older: URL\? = isWhole\(last\) \? file\(last\) : nil\n",
    ),
    "a file that has changed": (
        "Models",
        r"guard let known = sums\(version\), let ofFile = fileHash\(file\(version\)\), "
        r"let ofCard = fileHash\(card\(version\)\) else \{\n +return false\n +\}\n"
        r' +return known == "\\\(ofFile\) \\\(ofCard\)"\n',
    ),
    "a hash of anything but the bytes": (
        "Disk",
        r"func fileHash\(.*\n.*\n +guard let data = try\? Data\(contentsOf: file, .*\n"
        r" +return hex\(sha256\(data\)\)\n",
    ),
    "going back to what a killed update left": (
        "Models",
        r"let last = current\n +guard last != version else \{ return \}\n.*\n"
        r' +try .*\.write\(Self\.beforeNote, Data\("\\\(last\)"\.utf8\)\)\n'
        r' +try replace\(folder\.appendingPathComponent\("current"\)',
    ),
    "a current that cannot be read": (
        "Models",
        r"let version = current\n +guard version > 0 else \{ return \}\n +let kept = ",
    ),
    "partial files of other versions": (
        "Models",
        r'where name\.hasSuffix\("\.part"\) && !kept\.contains\(name\) \{ forget\(name\) \}',
    ),
    "a number without its folder": (
        "Models",
        r"UInt64\(number\), FileManager.*fileExists\(atPath: place.* else \{ return 0",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_swift_has_a_rule_against(rule: str) -> None:
    file, pattern = RULES[rule]
    assert re.search(pattern, SWIFT[file])


def test_a_shelf_keeps_the_version_in_use_and_the_one_before() -> None:
    models = SWIFT["Models"]
    shelf = models.partition("func forgetOthers()")[2].partition("\n  }\n")[0]
    assert 'let kept = ["current", "\\(version)", "\\(before(version))"]\n' in shelf
    assert "where !kept.contains(name) { forget(name) }" in shelf
    # The one before is what a note says, not the newest folder that is there.
    (before,) = re.findall(r"func before\(.*", models)
    assert "notes(version).text(Self.beforeNote)" in before
    assert not re.search(r"\.max\(|\.last\b|\.sorted\(", models)
    assert '"current"), Data("\\(version)\\n".utf8))' in models


def test_the_notes_of_a_version_have_names_that_no_model_can_have() -> None:
    notes = re.findall(r'Note = "(.*)"', SWIFT["Models"])
    assert len(set(notes)) == 2
    assert not [note for note in notes if re.fullmatch(NAME_PATTERN, note)]


def test_names_are_refused_as_the_protocol_refuses_them() -> None:
    found = re.search(r"let taken = \[(.*)\]\n", SWIFT["Models"])
    assert found
    taken = re.findall(r'"([^"]+)"', found[1])
    assert sorted(taken) == sorted(_TAKEN)
    # The comparison is with a name in small letters.
    assert taken == [name.lower() for name in taken]
