"""The Swift source against the protocol: it cannot be compiled here, so what it says is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from common.phones import phones_pb2
from common.phones.wire import _SERVICE, INLINE_UPDATE, LONGEST_WAIT, PART
from common.seeding import Purpose, stream_state

CLIENT = Path(__file__).parents[2] / "client"
IOS = CLIENT / "ios"
SWIFT = IOS / "Sources/Fedhead"
KOTLIN = CLIENT / "android/core/src/main/kotlin/dev/fedhead"
SOURCES = {
    "swift": "\n".join(path.read_text() for path in sorted(SWIFT.glob("*.swift"))),
    "kotlin": "\n".join(path.read_text() for path in sorted(KOTLIN.rglob("*.kt"))),
}
MESSAGES = dict(phones_pb2.DESCRIPTOR.message_types_by_name.items())
# What only phones send, or what they need of a message that both can send.
READ = {
    "Blob", "CheckInReply", "Later", "Description", "Backbone", "Task", "Training", "Part",
    "UploadReply", "Verdict", "Model",
}  # fmt: skip
WRITTEN = {
    "CheckInRequest", "Holding", "FetchRequest", "Part", "Submission", "Array", "LatestRequest",
}  # fmt: skip
# Words of protobuf's that the languages have for themselves.
OTHER_NAMES = {"private": "isPrivate"}
KINDS = {
    FieldDescriptor.TYPE_STRING: {"string", "message"},
    FieldDescriptor.TYPE_BYTES: {"bytes"},
    FieldDescriptor.TYPE_BOOL: {"bool", "uint"},
    FieldDescriptor.TYPE_UINT32: {"int", "uint"},
    FieldDescriptor.TYPE_UINT64: {"uint"},
    FieldDescriptor.TYPE_ENUM: {"int", "uint"},
    FieldDescriptor.TYPE_DOUBLE: {"double"},
    FieldDescriptor.TYPE_MESSAGE: {"bytes", "message"},
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return OTHER_NAMES.get(name, first + "".join(word.title() for word in rest))


def body(source: str, name: str) -> str:
    """The declaration of a type, up to the brace that closes it."""
    name = {"Array": "SentArray", "Model": "PublishedModel"}.get(name, name)
    begin = re.search(rf"^struct {name} \{{", source, re.M)
    assert begin, name
    return source[begin.end() : source.index("\n}", begin.end())]


def read_fields(source: str) -> dict[int, tuple[str, str]]:
    """Numbers of the fields that a Swift type reads: name and kind."""
    pattern = r"case (\d+): (\w+)(?: = |\.append\()try (?:\w+\(reading: )?field\.(\w+)\(\)"
    return {int(n): (name, kind) for n, name, kind in re.findall(pattern, source)}


def written_fields(source: str) -> dict[int, tuple[str, str]]:
    """Numbers of the fields that a Swift type writes: name and kind."""
    pattern = r"writer\.(\w+)\((\d+), (?:UInt64\(|Data\()?(\w+)"
    found = {int(n): (name, kind) for kind, n, name in re.findall(pattern, source)}
    repeated = {
        "format": "formats",
        "ability": "abilities",
        "holding": "holdings",
        "array": "arrays",
    }
    return {n: (repeated.get(name, name), kind) for n, (name, kind) in found.items()}


def matches(found: dict[int, tuple[str, str]], message: Descriptor, *, partly: bool) -> None:
    fields = {field.number: field for field in message.fields}
    assert partly or set(found) == set(fields), message.name
    assert found
    for number, (name, kind) in found.items():
        assert name == camel(fields[number].name), (message.name, number)
        assert kind in KINDS[fields[number].type], (message.name, name)


@pytest.mark.parametrize("name", sorted(READ))
def test_what_swift_reads_has_the_protocols_numbers_names_and_types(name: str) -> None:
    found = read_fields(body(SOURCES["swift"], name))
    matches(found, MESSAGES[name], partly=name == "Part")


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_what_swift_writes_has_the_protocols_numbers_names_and_types(name: str) -> None:
    matches(written_fields(body(SOURCES["swift"], name)), MESSAGES[name], partly=False)


def test_every_message_is_read_or_written() -> None:
    assert set(MESSAGES) == READ | WRITTEN


@pytest.mark.parametrize("language", SOURCES)
def test_numbers_of_enumerations_are_the_protocols(language: str) -> None:
    pattern = {"swift": r"case (\w+) = (\d)\n", "kotlin": r"const val ([A-Z]+) = (\d)\n"}[language]
    found = {name.upper(): int(number) for name, number in re.findall(pattern, SOURCES[language])}
    for name in ("SGD", "STATISTICS", "EVALUATE", "DONE", "DECLINED", "FAILED"):
        assert found[name] == getattr(phones_pb2, name)
    words = re.search(r'"unknown", "(\w+)", "(\w+)", "(\w+)", "(\w+)"', SOURCES[language])
    assert words
    what = phones_pb2.Verdict.What
    assert [what.Value(word.upper()) for word in words.groups()] == [1, 2, 3, 4]


@pytest.mark.parametrize("language", SOURCES)
def test_methods_and_abilities_are_the_protocols(language: str) -> None:
    source = SOURCES[language]
    methods = {method.name for method in phones_pb2.DESCRIPTOR.services_by_name["Phones"].methods}
    assert {*re.findall(r'(?:\.|\b)call\("(\w+)"', source)} == methods
    assert _SERVICE in source
    named = re.search(r'"sgd", "momentum", "weight-decay".*?[\])]', source, re.S)
    assert named
    codecs = ["codec:int8", "codec:drive"] if language == "kotlin" else []
    assert re.findall(r'"([a-z:0-9-]+)"', named.group()) == [
        "sgd", "momentum", "weight-decay", "mu", "correction", "preconditioner", "adam", "adamw",
        "statistics", "evaluate", "clip", *codecs,
    ]  # fmt: skip


@pytest.mark.parametrize("language", SOURCES)
def test_sizes_are_the_protocols(language: str) -> None:
    source = SOURCES[language]
    parts = re.findall(r"(?:part|PART|INLINE) = (\d+)L? (?:<<|shl) 10", source)
    inline = re.findall(r"data\.count <= (\d+) << 10", source)
    assert {int(size) << 10 for size in parts + inline} == {PART} == {INLINE_UPDATE}
    (wait,) = re.findall(r"waitSeconds: Int = (\d+)", source)
    assert int(wait) <= LONGEST_WAIT


def test_swifts_seeds_are_pythons() -> None:
    """The formulas of splitmix64, computed as they stand in the source."""
    source = (SWIFT / "Seeding.swift").read_text()
    steps = re.findall(r"z = (\(z \^ .*)|return (z \^ .*)", source)
    constants = dict(re.findall(r"(golden|localSplit): UInt64 = (\w+)", source))
    golden, purpose = (int(constants[name], 0) for name in ("golden", "localSplit"))
    mask = 2**64 - 1

    def mix(z: int) -> int:
        for changed, last in steps:
            z = eval((changed or last).replace("&*", "*"), {"z": z}) & mask
        return z

    state = 0
    for key in (7, purpose, 11):
        state = mix(((state ^ key) + golden) & mask)
    assert state == stream_state(7, Purpose.LOCAL_SPLIT, 11)


@pytest.mark.parametrize(("width", "height"), [(160, 120), (7, 5)])
def test_swift_scales_by_the_formulas_of_kotlin(width: int, height: int) -> None:
    """Kotlin's are compared with Pillow in test_android."""
    swift = (SWIFT / "Pixels.swift").read_text().partition("func windows")[2]
    kotlin = (KOTLIN / "Scaling.kt").read_text().partition("fun windows")[2]
    names = {"length": width, "start": (width - height) / 2, "side": height, "size": 32}
    names |= {
        "max": max,
        "maxOf": max,
        "min": min,
        "minOf": min,
        "abs": abs,
        "Double": float,
        "Int": int,
    }
    for name in ("step", "reach", "center", "first", "end"):
        values = []
        for source in (swift, kotlin):
            formula = re.search(rf"let {name} = (.*)|val {name} = (.*)", source)
            assert formula
            text = (formula[1] or formula[2]).replace(".toDouble()", "")
            values.append(
                eval(re.sub(r"\((.*)\)\.toInt\(\)", r"(int(\1))", text), {**names, "i": 3})
            )
        assert values[0] == values[1], name
        names[name] = values[0]


def test_the_readme_says_first_that_nothing_was_compiled() -> None:
    first = (IOS / "README.md").read_text().splitlines()[0]
    assert "never been compiled or run" in first


def test_the_readmes_calls_are_the_librarys() -> None:
    readme = (IOS / "README.md").read_text()
    phone = "".join((SWIFT / f"{name}.swift").read_text() for name in ("Phone", "Models"))
    for name in ("open", "add", "takePart", "updateModel", "modelInUse"):
        assert re.search(rf"public (static |nonisolated )?func {name}\(", phone)
        assert re.search(rf"[pP]hone\.{name}\(", readme)
    for label in ("className:", "takePart"):
        assert label in phone


# What a phone must not do, by file: what stands there instead. It cannot be run here.
RULES = {
    "a clock that was set back": ("Disk", r"guard left > drawn else .*\n.*keep\(drawn\)"),
    "a comment in phone.toml": ("Disk", r'value\.prefix \{ \$0 != "#" \}'),
    "a line 'key ='": ("Disk", r"omittingEmptySubsequences: false"),
    "a problem besides holdings": (
        "Phone",
        r'problem = held\.isEmpty \? troubles\.last \?\? "" : ""',
    ),
    "readiness of anything else": ("Phone", r"let ready = mayTrain\(\)\n"),
    "a refusal of all runs": (
        "Phone",
        r"for id in newest.*\n.*\n      do \{(.*\n)*.*catch let refusal",
    ),
    "features without asking": (
        "Images",
        r"guard mayGoOn\(\) else .*\n(.*\n){2,6}.*model\.features",
    ),
    "times of a private run": ("Phone", r"if !run\.isPrivate \{\n.*fetchSeconds.*\n.*trainSeconds"),
    "the upload's time": ("Tasks", r"if !kept\.large\.isEmpty && task\.clip == 0 \{"),
    "files of inline blobs": ("Gateway", r"isHere\(blob\) \? checked\(blob\) : Data\("),
    "a full disk": ("Phone", r"gateway\.keep\(.*\n.*images\.keepFeatures\("),
    "a short part": ("Gateway", r"min\(Self\.part, .*\n.*guard part\.data\.count == expected"),
    "another task's result": ("Tasks", r"found\.task == task\.id"),
    "a result without its task": (
        "Tasks",
        r'\["task", "late", "result", "begun"\] \{ disk\.delete',
    ),
    "an old signature": (
        "Phone",
        r"trust\?\.accept(.*\n){5}.*\n.*if let model, model\.fingerprint",
    ),
    "a decomposed name": ("Images", r"folder.*\n.*hex\(Data\(composed\(className\)"),
    "a name that is too long": ("Images", r"lastPathComponent\.utf8\.count <= 255"),
    "a number above 2^32": ("Wire", r"UInt32\(exactly: try uint\(\)\)"),
    "a file above 2^63 bytes": (
        "Trust",
        r"let size: UInt64\n(.*\n)*.*size = UInt64\(values(.*\n)*.*statement\.size == file\.size",
    ),
    "repeated fields": ("Tasks", r"Set\(task\.fields\)\.count == task\.fields\.count"),
    "a wait for training": ("Phone", r"public nonisolated func add\("),
}


@pytest.mark.parametrize("rule", RULES)
def test_swift_has_the_rules_that_kotlin_is_tested_for(rule: str) -> None:
    file, pattern = RULES[rule]
    assert re.search(pattern, (SWIFT / f"{file}.swift").read_text())


def test_no_number_of_a_gateway_can_trap_in_swift() -> None:
    """Products are of numbers below 2^32, one of them at most 2^25."""
    body = (SWIFT / "Tasks.swift").read_text().partition("func check(")[2]
    most = 1 << int(re.search(r"let most = 1 << (\d+)", body)[1])
    assert most * (2**32 + 1) < 2**63
    assert 4 * (most + 1) ** 2 < 2**63
    for name in ("numClasses", "numFeatures"):
        assert f"min(task.{name}, most)" in body
    assert "min(training.epochs, most) * " in body
    assert "uniqueKeysWithValues: task" not in SOURCES["swift"]


def test_the_readmes_task_stops_when_its_time_is_over() -> None:
    readme = (IOS / "README.md").read_text()
    assert re.search(r"expirationHandler = \{ mayTrain\.withLock \{ \$0 = false \} \}", readme)
    assert "takePart(mayTrain: { mayTrain.withLock" in readme
    handler = readme.partition("static func takePart")[2].partition("```")[0]
    # No path leaves the function before it.
    assert not re.search(r"\breturn\b|\bthrows\b|try (?!\?)|try(?=\s)", handler)
    assert handler.rstrip("} \n").endswith("task.setTaskCompleted(success: visit != nil)")
    assert "-all_load" in readme
    assert "-lc++" in readme


def test_no_guard_declares_a_name_of_its_own_block_again() -> None:
    """``let x = f()``, then ``guard let x else``: Swift allows it of parameters alone."""
    for path in SWIFT.glob("*.swift"):
        before: list[str] = []
        for line in filter(str.strip, path.read_text().splitlines()):
            indent = " " * (len(line) - len(line.lstrip()))
            # What stands in blocks that have ended is out of sight.
            before = [old for old in before if len(old) - len(old.lstrip()) <= len(indent)]
            if re.match(r" *guard ", line):
                for name in re.findall(r"\blet (\w+)(?=,| else|$)", line):
                    assert not [old for old in before if re.match(rf"{indent}let {name}\b", old)]
            before.append(line)
