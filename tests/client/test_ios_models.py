"""How the Swift source updates a finished model; it cannot be run here, so what it says is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.delivery.versions import MOST_VERSIONS
from common.phones.wire import LARGEST_CARD, LARGEST_MODEL
from common.signing.statement import _STATEMENT, MAX_SIGNED_BYTES, NAME_PATTERN
from common.signing.trust import CLOCK_SKEW_SECONDS, MAX_KEYS

ROOT = Path(__file__).parents[2]
SWIFT = {
    path.stem: path.read_text() for path in (ROOT / "client/ios/Sources/Fedhead").glob("*.swift")
}
DELIVERY = (ROOT / "common/delivery/delivery.proto").read_text()
PHONES = (ROOT / "common/phones/phones.proto").read_text()


def stated() -> list[str]:
    """Names of the lines that are signed, below the first one, as delivery.proto has them."""
    block = DELIVERY.partition("fedhead artifact v1\n")[2].partition("\n//\n")[0]
    return re.findall(r"^// {10}(\w+) \w+", block, re.M)


def swift_lines() -> list[str]:
    """The lines of a statement as Swift's pattern has them."""
    found = re.search(r"lines: Regex<.*?\[\n(.*?)\]\.joined", SWIFT["Trust"], re.S)
    assert found
    return [line.replace("\\n", "\n") for line in re.findall(r'^ +"(.*)",$', found[1], re.M)]


def test_a_statement_has_the_lines_of_the_protocol_and_of_python() -> None:
    assert len(stated()) == 9
    first, *lines = swift_lines()
    assert first == "fedhead artifact v1\n"
    assert [line.partition(" ")[0] for line in lines] == stated()
    python = re.sub(r"\?P<\w+>", "", _STATEMENT.pattern.decode()).replace("\\n", "\n")
    assert "".join([first, *lines]) == python


def test_each_value_is_read_from_its_own_line() -> None:
    numbers = re.findall(r"let (\w+) = U?Int(?:64)?\(values\[(\d)\]\)", SWIFT["Trust"])
    texts = re.findall(r"^    (\w+) = values\[(\d)\]$", SWIFT["Trust"], re.M)
    found = {name: int(place) for name, place in numbers + texts}
    assert found == {name: place for place, name in enumerate(stated(), 1)}
    assert "values.count == 10" in SWIFT["Trust"]
    for name, _ in numbers:  # a name that is bound but not kept would be a parameter's default
        assert f"self.{name} = {name}\n" in SWIFT["Trust"]


# By line of a statement: what a model's must be, and where that is asked.
MUST_BE = {
    "kind": ("Trust", r"guard statement\.kind == kind else"),
    "name": ("Trust", r"guard statement\.name == model\.name else"),
    "version": ("Trust", r"guard statement\.version == model\.version else"),
    "size": ("Trust", r"guard .*statement\.size == file\.size else"),
    "sha256": ("Trust", r"guard statement\.sha256 == file\.sha256, .* else"),
    "card": ("Trust", r"guard statement\.card == card else"),
    "fingerprint": ("Models", r"guard fingerprint == statement\.fingerprint else"),
    "created": ("Trust", r"guard now >= statement\.created - Self\.skew else"),
    "expires": ("Trust", r"guard now <= statement\.expires \+ Self\.skew else"),
}


@pytest.mark.parametrize("line", stated())
def test_each_line_of_a_statement_must_match(line: str) -> None:
    file, pattern = MUST_BE[line]
    assert len(re.findall(pattern, SWIFT[file])) == 1


def test_models_and_backbones_are_checked_by_the_same_function() -> None:
    trust = SWIFT["Trust"]
    model = 'signed("model", model.statement, model.signature, model.file, card: model.card.sha256)'
    assert model in trust
    # A backbone has no card: the SHA-256 of no bytes is signed.
    backbone = r"backbone\.statement, backbone\.signature, backbone\.file, card: hex\(sha256\(Data"
    assert re.search(backbone, trust)
    accept, check = (
        trust.partition(f"  func {what}(")[2].partition("\n  }\n")[0]
        for what in ("accept", "check")
    )
    for body in (accept, check):
        assert "= try signed(" in body
        assert "try checkOrder(" in body
    assert accept.endswith("try remember(statement)")
    assert '"kind model"' in PHONES
    assert '"kind backbone"' in PHONES


def test_limits_are_the_protocols() -> None:
    trust, models = SWIFT["Trust"], SWIFT["Models"]
    assert f"mostBytes = {MAX_SIGNED_BYTES}\n" in trust
    assert "bytes.count + signature.count <= Self.mostBytes," in trust
    assert f"skew = {CLOCK_SKEW_SECONDS}\n" in trust
    assert f"(1...{MAX_KEYS}).contains(keys.count)" in trust
    assert f'try! Regex("{NAME_PATTERN}")' in models
    assert f"answer.version <= {MOST_VERSIONS:_} else" in models
    for blob, largest in (("file", LARGEST_MODEL), ("card", LARGEST_CARD)):
        assert re.search(rf"Blob {blob} = \d; .*at most {largest >> 20} MiB", PHONES)
        call = f'checkBlob(answer.{blob}, "the {blob} of \\(name)", mostMiB: {largest >> 20})\n'
        assert call in models


# What the gateway or the app may do, by file: what stands there against it.
RULES = {
    "no model of that name": ("Models", r"code == \.notFound \{\n.*Refusal\(\"no-model\""),
    "an answer of another name": (
        "Models",
        r"guard Data\(answer\.name\.utf8\) == Data\(name\.utf8\) else",
    ),
    "version 0": ("Models", r"guard answer\.version >= 1, answer\.version <= "),
    "a blob without a name": ("Models", r"guard isHash\(blob\.sha256\) else \{ throw "),
    "no file, or one without end": (
        "Models",
        r"guard blob\.size >= 1, blob\.size <= mostMiB << 20 else \{\n +throw .*"
        r"expected 1 byte to \\\(mostMiB\) MiB",
    ),
    "an older version, without keys": (
        "Models",
        r"guard answer\.version >= current else \{\n"
        r" +if let model = shelf\.model\(isNew: false\) \{ return model \}\n"
        r" +throw Refusal\(\"damaged-model\", ",
    ),
    "an older version than accepted": (
        "Trust",
        r"last = accepted\.version >= inUse\.version \? accepted : inUse\n"
        r" +guard statement\.version >= last\.version else",
    ),
    "another file of the same version": (
        "Trust",
        r"guard statement\.version > last\.version \|\| statement\.sha256 == last\.sha256 else",
    ),
    "a damaged note": (
        "Trust",
        r"guard let note = .*\n.*\n +guard !names\(in: disk\.folder\)\.contains\(statement\.name\)",
    ),
    "no statement": ("Trust", r'guard !bytes\.isEmpty else \{ throw .*"it is not signed"'),
    "another key": (
        "Trust",
        r"keys\.contains\(where: \{ \$0\.isValidSignature\(parsed, for: bytes",
    ),
    "letters that Swift takes for others": (
        "Trust",
        r"guard bytes\.allSatisfy\(\{ \$0 < 128 \}\) else \{ return nil \}",
    ),
    "a kill during a fetch": (
        "Gateway",
        r"seekToEnd\(\)\n(.*\n)+.*FetchRequest\(sha256: blob\.sha256, offset: size\)",
    ),
    "a partial file that is too long": (
        "Gateway",
        r"if size > blob\.size \{\n.*\n.*truncate\(atOffset: 0\)\n +size = 0\n",
    ),
    "wrong bytes": (
        "Gateway",
        r"for _ in 1\.\.\.2 \{\n.*append\(blob, to: file\)\n.*isWhole\(file, blob\) \{ return \}\n"
        r".*removeItem\(at: file\)\n    \}\n    throw ",
    ),
    "bytes of another SHA-256": (
        "Gateway",
        r"return UInt64\(data\.count\) == blob\.size && hex\(sha256\(data\)\) == blob\.sha256",
    ),
    "the same in a message": (
        "Gateway",
        r"guard UInt64\(blob\.data\.count\) == blob\.size, hex\(sha256\(blob\.data\)\) == ",
    ),
    "a part that is not kept": (
        "Gateway",
        r"try handle\.write\(contentsOf: part\.data\)\n +size \+= UInt64\(expected\)\n",
    ),
    "a backbone that is half there": (
        "Gateway",
        r"try await fetch\(blob, into: partial\)\n +try move\(partial, to: file\)\n",
    ),
    "a backbone without end": ("Gateway", r"guard isHash\(blob\.sha256\), blob\.size <= 128 << 20"),
    "a file that is larger than memory": (
        "Gateway",
        r"contentsOf: file, options: \.mappedIfSafe\)",
    ),
    "a part of another blob or place": (
        "Gateway",
        r"guard part\.sha256 == blob\.sha256, part\.size == blob\.size, part\.offset == size else "
        r"\{\n +throw (.*\n)+.*handle\.write\(contentsOf: part\.data",
    ),
    "a power cut after a fetch": ("Gateway", r"\n    \}\n    try handle\.synchronize\(\)\n"),
    "a second call meanwhile": (
        "Models",
        r"guard !updating\.contains\(name\) else \{ throw .*\n +updating\.insert\(name\)\n"
        r" +defer \{ updating\.remove\(name\) \}",
    ),
    "other bytes of the version in use": (
        "Models",
        r"if answer\.version == current, let known = shelf\.sums\(current\), "
        r"known != Self\.sums\(answer\) \{\n.*\n +throw .*is in use here with other bytes",
    ),
    "a model for a backbone of another format": (
        "Trust",
        r'guard statement\.name\.hasSuffix\("\.\\\(backbone\.format\)"\) else',
    ),
    "another backbone": ("Trust", r"guard statement\.fingerprint == fingerprint else \{ throw "),
    "a note of an older version": (
        "Trust",
        r"guard statement\.version > last\.version else \{ return \}\n"
        r" +try notes\(statement\.kind\)\.write\(statement\.name, ",
    ),
    "a note of another form": (
        "Trust",
        r"guard words\.count == 2, let version = UInt64\(words\[0\]\) else \{\n +throw ",
    ),
    "a file that was damaged on the disk": (
        "Models",
        r"let hasFile = gateway\.isWhole\(file, answer\.file\)\n(.*\n)*.*if !hasFile \{ try await ",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_swift_has_a_rule_against(rule: str) -> None:
    file, pattern = RULES[rule]
    assert re.search(pattern, SWIFT[file])


def test_the_steps_of_an_update_come_in_the_protocols_order() -> None:
    """Nothing is fetched before it is checked, nothing in place before it is noted as accepted."""
    steps = [
        "try await latest(name)",
        "try Self.check(answer, name)",
        "known != Self.sums(answer) {",
        "try trust?.check(answer, inUse: shelf.noted)",
        "guard answer.version >= current else {",
        "try await install(answer, statement, shelf)",
        "private func install(",
        "shelf.forgetPartials(but: [",
        "gateway.fetch(answer.card, into: newCard)",
        "fingerprint == statement.fingerprint",
        "gateway.fetch(answer.file, into: newFile)",
        "trust?.remember(statement)",
        "move(newCard, to: card)",
        "move(newFile, to: file)",
        "shelf.use(answer.version, Self.sums(answer))",
        "shelf.forgetOthers()",
    ]
    places = [SWIFT["Models"].index(step) for step in steps]
    assert places == sorted(places)
    assert all(SWIFT["Models"].count(step) == 1 for step in steps)


def test_a_part_is_read_with_all_that_it_is_compared_with() -> None:
    """What is not read would stay empty, and no part would ever be the one asked for."""
    part = SWIFT["Messages"].partition("\nstruct Part {")[2].partition("\n}\n")[0]
    read = dict(re.findall(r"case (\d): (\w+) = try field", part))
    assert {"sha256", "size", "offset", "data"} <= set(read.values())


def test_the_readme_says_whose_a_folder_is() -> None:
    readme = (ROOT / "client/ios/README.md").read_text()
    assert "A phone's folder belongs to one program" in readme
