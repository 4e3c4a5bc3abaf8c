import numpy as np
import pytest

from common.errors import ReplyError
from common.fields import field_layouts
from common.types import ClientPlan, Layout
from common.updates import FieldSums, client_weights
from common.validate import check_fields

LAYOUTS = field_layouts(("delta",), 2, 3)


def test_layouts_follow_classes_and_features() -> None:
    layouts = field_layouts(("delta", "effective_steps", "gram", "moments"), 10, 1280)
    assert layouts == {
        "delta": Layout((10, 1281), "f"),
        "effective_steps": Layout((1,), "f"),
        "gram": Layout((821_121,), "u"),
        "moments": Layout((10, 1281), "u"),
    }


def test_float_sums_are_weighted_in_float64() -> None:
    rows = [{"delta": np.full((2, 4), v, np.float32)} for v in (1e8, 1.0, -1e8)]
    sums = FieldSums()
    for row, weight in zip(rows, (1.0, 2.0, 1.0), strict=True):
        sums.add(row, weight)
    summed = sums.row()["delta"]
    assert summed.dtype == np.float32
    np.testing.assert_array_equal(summed, np.full((1, 2, 4), 2.0))


def test_integer_sums_are_exact_and_widen_when_they_must() -> None:
    big = {"gram": np.array([2**32 - 1], np.uint32)}
    one = {"gram": np.array([1], np.uint32)}
    sums = FieldSums()
    sums.add(one)
    assert sums.row()["gram"].dtype == np.uint32
    sums.add(big)
    total = sums.row()["gram"]
    assert (total.dtype, int(total[0, 0])) == (np.uint64, 2**32)


def test_weights_follow_the_plan() -> None:
    counts = np.array([3, 5], np.int64)
    assert client_weights(ClientPlan(), counts).tolist() == [3, 5]
    assert client_weights(ClientPlan(weighting="uniform"), counts).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"delta": np.full((2, 4), np.nan, np.float32)}, "delta is not finite"),
        ({"delta": np.full((2, 4), np.inf, np.float32)}, "delta is not finite"),
        ({"delta": np.zeros((2, 5), np.float32)}, r"delta is \(2, 5\), expected \(2, 4\)"),
        ({"delta": np.zeros((2, 4), np.int64)}, "delta has dtype int64, expected float32"),
        ({"delta": np.full((2, 4), "x")}, "delta has dtype <U1"),
        ({}, r"sent the fields \[\], expected \['delta'\]"),
        ({"delta": np.zeros((2, 4), np.float32), "b": np.zeros(1)}, "sent the fields"),
        ({"delta": np.full((2, 4), 3e38, np.float32)}, r"delta holds numbers above 1e\+30"),
        ({"delta": np.ones((2, 4), np.float32)}, "above the bound 2"),
    ],
)
def test_an_unfit_update_is_refused(fields: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ReplyError, match=message):
        check_fields(fields, LAYOUTS, max_norm=2.0)


def test_a_fit_update_passes() -> None:
    check_fields({"delta": np.full((2, 4), 0.5, np.float32)}, LAYOUTS, max_norm=2.0)
    check_fields({"delta": np.full((2, 4), 1e9, np.float32)}, LAYOUTS, max_norm=0.0)


def test_statistics_must_be_unsigned_integers() -> None:
    layouts = field_layouts(("moments",), 2, 3)
    with pytest.raises(ReplyError, match="expected unsigned integers"):
        check_fields({"moments": np.zeros((2, 4), np.float32)}, layouts, 0)
    check_fields({"moments": np.zeros((2, 4), np.uint32)}, layouts, 0)
