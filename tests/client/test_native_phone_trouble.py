"""The C++ phone where something goes wrong: kills, other keys, damaged bytes, an owner's no."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from safetensors.numpy import save_file

from common.messages import DescribeReply, DescribeRequest, TrainReply
from common.partition import evenly
from common.phones import file_name
from common.signing.statement import Statement
from common.types import ClientPlan, LocalTraining
from simulations.deploy.authority import ensure_authority
from simulations.deploy.signing_key import sign
from tests.client.gateway.actors import Node
from tests.client.native_phones import (
    SEED,
    TEST_FRACTION,
    NativePhone,
    Place,
    arrays_of,
    examples_of,
    heard,
    request_for,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_CALL_REFUSED = 75  # exit status of a phone that is to try again later


@pytest.fixture
def program(phone_program):
    return phone_program("executorch")


def killed_until(phone: NativePhone, answer: Future[TrainReply], draws: random.Random) -> int:
    """Kill the phone at random moments until a round has its reply.

    Returns:
        How often it was killed before that.
    """
    kills, longest = 0, 0.1
    while not answer.done():
        phone.start()
        end = time.monotonic() + draws.uniform(0.0, longest)
        while time.monotonic() < end and not answer.done():
            time.sleep(0.002)
        kills += not answer.done()
        phone.kill()
        longest *= 1.2  # until it suffices, however busy the machine
    return kills


def test_kills_at_any_moment_cost_time_and_nothing_else(place, program, tmp_path):
    phone = place.phone("anna", program)
    phone.start()
    place.joined(phone)
    phone.kill()
    reference = examples_of(place.trained, phone.client)
    draws, kills = random.Random(0), 0
    plans: list[dict[str, Any]] = [
        {},
        {"plan": ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")},
        {"training": LocalTraining(0.02, 150, 2, momentum=0.5)},
    ]
    for number, changes in enumerate(plans * 2, 1):
        request = request_for(place.trained, phone.client, round_number=number, **changes)
        kills += killed_until(phone, answer := place.train(request), draws)
        reply = answer.result(1)
        assert not reply.rejected, phone.log
        node = Node(tmp_path / str(number), [reference]).update(request)
        expected = arrays_of(node, request, phone.client)
        for field, array in arrays_of(reply, request, phone.client).items():
            np.testing.assert_allclose(array, expected[field], rtol=0, atol=1e-5, err_msg=field)
    assert kills > 3 * len(plans)
    assert place.counters["accepted"] == 2 * len(plans)
    assert phone.once() == 0
    assert not (phone.state / "task").exists()
    assert [*(phone.state / "uploads").iterdir()] == []


def test_an_upload_goes_on_where_a_kill_ended_it(place, program):
    """The sums of products, 3.3 MB, go in parts; after a kill the phone asks how many came."""
    phone = place.phone("anna", program)
    phone.start()
    place.joined(phone)
    plan = ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")
    answer = place.train(request_for(place.trained, phone.client, plan=plan))
    kept = place.place.uploads
    until(lambda: sum(p.stat().st_size for p in kept.rglob("*") if p.is_file()), "no upload")
    phone.kill()
    assert not answer.done()
    (result,) = phone.state.glob("result")
    before = result.read_bytes()
    arrived = sum(p.stat().st_size for p in kept.rglob("*") if p.is_file())
    assert 0 < arrived < 3_300_000
    phone.start()
    assert not answer.result(60).rejected
    assert b"gram" in before  # it was computed before the kill, and not again
    assert phone.log.count("joined it") == 1
    phone.stop()


SUMS = {"plan": ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")}
Code = grpc.StatusCode


@pytest.mark.parametrize("code", [Code.CANCELLED, Code.OUT_OF_RANGE, Code.DATA_LOSS])
def test_a_result_outlives_a_failed_call(code, place, program, monkeypatch):
    codes = [code]
    uploads = heard(place, monkeypatch, "upload")
    results = heard(place, monkeypatch, "submit", lambda: codes.pop() if codes else None)
    phone = place.phone("anna", program)
    phone.start()
    place.joined(phone)
    assert not place.train(request_for(place.trained, phone.client, **SUMS)).result(60).rejected
    until(lambda: "round 1: done: accepted" in phone.log, phone.log)
    first, second = results
    assert first.arrays == second.arrays
    assert first.train_seconds == second.train_seconds  # it was not computed again
    assert min(second.fetch_seconds, second.train_seconds, second.upload_seconds) > 0
    # It asks again how much of the large array has come; the array itself goes once.
    assert sum(not part.data for part in uploads) == 2
    assert phone.log.count("trying again") == (code is Code.CANCELLED)
    phone.stop()


def test_a_lost_verdict_is_asked_for(place, program, monkeypatch):
    """The gateway has judged the result, so that an upload is NOT_FOUND."""
    codes = [Code.UNAVAILABLE]
    results = heard(
        place, monkeypatch, "submit", lambda: codes.pop() if codes else None, after=True
    )
    phone = place.phone("anna", program)
    phone.start()
    place.joined(phone)
    assert not place.train(request_for(place.trained, phone.client, **SUMS)).result(60).rejected
    until(lambda: "round 1: done: accepted" in phone.log, phone.log)
    assert len(results) == 2
    assert place.counters["duplicate"] == 1
    phone.stop()


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.INVALID_ARGUMENT])
def test_a_result_that_no_gateway_wants_is_forgotten(code, place, program, monkeypatch):
    results = heard(place, monkeypatch, "submit", lambda: code)
    phone = place.phone("anna", program)
    phone.start()
    place.joined(phone)
    place.train(request_for(place.trained, phone.client, seconds=5.0))
    until(lambda: results, phone.log)
    until(lambda: not (phone.state / "result").exists(), "the result is kept")
    phone.kill()
    assert not (phone.state / "task").exists()


@pytest.mark.parametrize("damaged", ["task", "result", "uploads", "descriptions"])
def test_a_flipped_bit_on_the_disk_is_never_sent(damaged, place, program, tmp_path, monkeypatch):
    ready: list[bool] = []
    parts = heard(place, monkeypatch, "upload", lambda: None if ready else Code.UNAVAILABLE)
    phone = place.phone("anna", program)
    phone.start()
    place.joined(phone)
    answer = place.train(request := request_for(place.trained, phone.client, **SUMS))
    until(lambda: parts, phone.log)
    phone.kill()
    path = phone.state / damaged
    if path.is_dir():
        (path,) = path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    ready.append(True)
    phone.start()
    reply = answer.result(100)
    assert not reply.rejected, phone.log
    node = Node(tmp_path / "node", [examples_of(place.trained, phone.client)]).update(request)
    expected = arrays_of(node, request, phone.client)
    found = arrays_of(reply, request, phone.client)
    assert {*found} == {*expected} == {"gram", "moments"}
    assert {part.sha256 for part in parts} == {parts[0].sha256}
    sent = b"".join(part.data for part in parts)
    assert hashlib.sha256(sent).hexdigest() == parts[0].sha256
    for field in found:
        np.testing.assert_array_equal(found[field], expected[field])
    phone.stop()


def test_a_run_that_a_phone_cannot_join_leaves_it_in_another(place, program):
    trained = place.trained
    missing = str(trained.labels[0])
    others = tuple("another" if name == missing else name for name in trained.classes)
    for kind in ("executorch", "lite"):  # each list of classes has its own files
        if (file := place.folder / file_name(kind, trained.classes)).exists():
            shutil.copy(file, place.folder / file_name(kind, others))
    request = DescribeRequest(
        "run-2", others, TEST_FRACTION, SEED, "the other",
        fingerprint=trained.backbone.fingerprint,
    )  # fmt: skip
    place.ask("describe", request)
    phone = place.phone("anna", program)
    phone.start()
    place.joined(phone)
    words = "cannot take part in run the other: images: a folder is no class of the run"
    until(lambda: words in phone.log, phone.log)
    for number in (1, 2):
        place.ask("describe", request)
        reply = place.train(request_for(trained, phone.client, round_number=number)).result(120)
        assert reply.clients == (phone.client,), phone.log
    assert phone.log.count("joined it") == 1
    assert DescribeReply.read(place.ask("describe", request)).clients == ()
    phone.stop()


def test_images_that_are_left_out_are_told_when_their_number_changes(place, program):
    phone = place.phone("anna", program)
    foreign = phone.state / "features" / ("a" * 64)
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"features of a backbone that no run has")
    rounds = iter(range(1, 10))
    for number in (1, 2):
        (phone.path / "images" / "3" / f"small{number}.rgb").write_bytes(b"small")
        if number == 1:
            phone.start()
            place.joined(phone)
        for _ in range(2):  # a check-in before each
            request = request_for(place.trained, phone.client, round_number=next(rounds))
            assert not place.train(request).result(60).rejected
        until(lambda n=number: f"{n} images are left out" in phone.log, phone.log)
        assert phone.log.count("images are left out") == number
    phone.stop()
    kept = [path.name for path in (phone.state / "features").iterdir()]
    assert kept == [place.trained.backbone.fingerprint]


def test_a_wrong_token_is_refused_and_asked_again_rarely(place, program):
    phone = place.phone("anna", program)
    (phone.path / "phone.token").write_text("f" * 64 + "\n")
    assert phone.once() == _CALL_REFUSED
    assert phone.log.count("\n") == 1
    assert "trying again, each time later" in phone.log
    assert place.counters["wrong-token"] == 1
    assert not place.describe().clients


def test_a_foreign_authority_or_name_is_not_spoken_to(place, program, tmp_path):
    phone = place.phone("anna", program)
    ensure_authority(tmp_path / "other")
    own = phone.path / "ca.crt"
    kept = own.read_bytes()
    (found,) = [*(tmp_path / "other").rglob("ca.crt")][:1]
    shutil.copy(found, own)
    assert phone.once() == _CALL_REFUSED
    assert "certificate" in phone.log
    own.write_bytes(kept)
    toml = phone.path / "phone.toml"
    toml.write_text(toml.read_text().replace("127.0.0.1:", "127.0.0.2:"))
    assert phone.once() == _CALL_REFUSED
    assert place.counters["wrong-token"] == 0
    assert not [name for name in place.counters if "token" in name]
    toml.write_text(toml.read_text().replace("127.0.0.2:", "127.0.0.1:"))
    assert phone.once() == 0


def test_a_flipped_byte_of_the_backbone_is_found(place, program):
    path = place.folder / file_name("executorch", place.trained.classes)
    place.describe()
    other = place.phone("ben", program)
    assert other.once() == 0  # the gateway has now computed the file's SHA-256
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    phone = place.phone("anna", program)
    phone.start()
    until(lambda: place.counters["damaged-blob"], "the problem is not reported", 60)
    assert not [*(phone.state / "blobs").iterdir()]
    assert phone.client not in place.describe().clients
    phone.stop()


def signed(place: Place, key: EllipticCurvePrivateKey, version: int, **changes: Any) -> Statement:
    """Sign the backbone's file as the deployment's operator does."""
    path = place.folder / file_name("executorch", place.trained.classes)
    content = path.read_bytes()
    values = {
        "kind": "backbone", "name": "run.executorch", "version": version, "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "card": hashlib.sha256().hexdigest(),
        "fingerprint": place.trained.backbone.fingerprint,
        "created": int(time.time()) - 10, "expires": int(time.time()) + 1000,
    } | changes  # fmt: skip
    statement = Statement(**values)
    result = sign(key, statement)
    path.with_name(f"{path.name}.statement").write_bytes(result.statement)
    path.with_name(f"{path.name}.signature").write_bytes(result.signature)
    return statement


def trusting(place: Place, program: Path, name: str, *keys: EllipticCurvePrivateKey) -> NativePhone:
    phone = place.phone(name, program)
    (phone.path / "trusted").mkdir()
    for i, key in enumerate(keys):
        path = phone.path / "trusted" / f"{i}.pub"
        path.write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        path.chmod(0o644)
    return phone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (None, "it is not signed"),
        ({"foreign": True}, "no trusted key has signed it"),
        ({"kind": "model"}, "signed as a model"),
        ({"name": "run.lite"}, "expected a name with .executorch"),
        ({"fingerprint": "0" * 64}, "another fingerprint"),
        ({"sha256": "0" * 64}, "another file"),
        ({"size": 7}, "another file"),
        ({"card": "0" * 64}, "with a card"),
        ({"created": 2 * 10**9, "expires": 3 * 10**9}, "in the future"),
        ({"created": 10**9, "expires": 10**9 + 1}, "expired"),
    ],
)
def test_an_unsigned_backbone_is_not_loaded(changes, words, place, program):
    key = generate_private_key(SECP256R1())
    phone = trusting(place, program, "anna", key)
    if changes is not None:
        foreign = changes.pop("foreign", False)
        signed(place, generate_private_key(SECP256R1()) if foreign else key, 3, **changes)
    place.describe()
    assert phone.once() == _CALL_REFUSED
    assert f"unsigned-backbone: {words}" in phone.log or words in phone.log
    assert not [*(phone.state / "blobs").iterdir()]  # it is not even fetched
    phone.start()
    until(lambda: place.counters["unsigned-backbone"], "the problem is not reported")
    phone.stop()


def test_a_signed_backbone_is_loaded_and_never_an_older_one(place, program):
    old, new = (generate_private_key(SECP256R1()) for _ in range(2))
    phone = trusting(place, program, "anna", old, new)
    signed(place, new, 3)
    place.describe()
    assert phone.once() == 0
    assert place.describe().clients == (phone.client,)
    accepted = phone.state / "accepted" / "backbone" / "run.executorch"
    before = accepted.read_bytes()
    assert b"version 3\n" in before

    # A phone that has lost its descriptions, but not what it has accepted.
    shutil.rmtree(phone.state / "descriptions")
    signed(place, old, 2)
    phone.start()
    until(lambda: "older than version 3" in phone.log, phone.log)
    phone.stop()
    assert accepted.read_bytes() == before
    accepted.write_bytes(b"version 0x\n")
    shutil.rmtree(phone.state / "descriptions", ignore_errors=True)
    signed(place, old, 4)
    assert phone.once() == _CALL_REFUSED
    assert "damaged" in phone.log


def test_a_renewed_signature_reaches_a_phone_that_has_met_the_run(place, program):
    key = generate_private_key(SECP256R1())
    phone = trusting(place, program, "anna", key)
    signed(place, key, 3)
    phone.start()
    place.joined(phone)
    accepted = phone.state / "accepted" / "backbone" / "run.executorch"
    accepted.write_bytes(accepted.read_bytes().replace(b"version 3\n", b"version 5\n"))
    reply = place.train(request_for(place.trained, phone.client)).result(60)
    assert [r.reason for r in reply.rejected] == ["failed: unsigned-backbone"], phone.log
    until(lambda: place.counters["unsigned-backbone"], phone.log)
    signed(place, key, 6)
    place.joined(phone)
    assert b"version 6\n" in accepted.read_bytes()
    request = request_for(place.trained, phone.client, round_number=2)
    assert not place.train(request).result(60).rejected
    phone.stop()


def test_an_owners_no_is_obeyed(place, program, tmp_path):
    no = tmp_path / "no"
    no.touch()
    phone = place.phone("anna", program, allow=f"test ! -e {no}")
    phone.start()
    place.describe()
    time.sleep(2)
    assert not place.describe().clients
    assert not [*(phone.state / "descriptions").iterdir()]
    phone.kill()
    no.unlink()
    phone.start()
    place.joined(phone)
    phone.stop()


def test_what_is_not_allowed_any_more_is_declined(place, program):
    phone = place.phone("anna", program, allow="test ! -e PLACE/state/task")
    toml = phone.path / "phone.toml"
    toml.write_text(toml.read_text().replace("PLACE", str(phone.path)))
    phone.start()
    place.joined(phone)
    reply = place.train(request_for(place.trained, phone.client)).result(60)
    (rejection,) = reply.rejected
    assert rejection.client == phone.client
    assert rejection.reason.startswith("declined: ")
    assert str(phone.path) not in rejection.reason
    phone.stop()


def test_failures_tell_nothing_of_the_owner(place, program):
    """Once it has a task, its owner adds an image, so that the numbers do not agree."""
    phone = place.phone("anna", program, allow="test ! -e PLACE/state/task || cp PLACE/ADDED")
    toml = phone.path / "phone.toml"
    image = next((phone.path / "images" / "3").iterdir())
    added = f"images/3/{image.name} {image.parent}/my-secret.rgb"
    toml.write_text(toml.read_text().replace("ADDED", added).replace("PLACE", str(phone.path)))
    phone.start()
    place.joined(phone)
    reply = place.train(request_for(place.trained, phone.client)).result(60)
    (rejection,) = reply.rejected
    assert rejection.reason == "failed: images: they have changed"
    until(lambda: place.describe().num_examples == (49,), "the new number is not told")
    assert place.train(request_for(place.trained, phone.client, round_number=2)).result(60).reports
    phone.stop()


@pytest.mark.parametrize(("own", "run"), [(23, 0), (0, 17), (23, 17), (100, 0)])
def test_the_most_images_are_spread_as_pythons(own, run, place, program):
    phone = place.phone("anna", program, **{"max-examples": own})
    phone.start()
    place.joined(phone, max_examples=run)
    most = min((limit for limit in (own, run) if limit), default=0)
    expected = examples_of(place.trained, phone.client, evenly(60, most))
    reply = place.describe(max_examples=run)
    assert reply.num_examples == (len(expected.train),)
    phone.stop()


def test_features_may_take_the_place_of_images(place, program, tmp_path):
    trained = place.trained
    order = np.lexsort((np.arange(60), trained.labels))
    arrays = {"features": trained.features[order], "labels": trained.labels[order]}
    phone = place.phone("anna", program, data="features:kept.safetensors")
    shutil.rmtree(phone.path / "images")
    save_file(
        arrays, phone.path / "kept.safetensors", {"fingerprint": trained.backbone.fingerprint}
    )
    phone.start()
    place.joined(phone)
    request = request_for(trained, phone.client)
    found = arrays_of(place.train(request).result(60), request, phone.client)["delta"]
    node = Node(tmp_path / "node", [examples_of(trained, phone.client)]).update(request)
    expected = arrays_of(node, request, phone.client)["delta"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    phone.stop()


def test_two_processes_do_not_share_a_folder(place, program):
    phone = place.phone("anna", program)
    first = phone.start()
    place.describe()
    until(lambda: (phone.state / "lock").exists(), "no lock")
    assert phone.start("--once").wait(20) == 1
    assert "another fedhead-phone uses it" in phone.log
    phone.process = first
    phone.stop()
