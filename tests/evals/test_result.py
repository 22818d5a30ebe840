"""Results: saving, pairing by item, and how they look."""

import dataclasses
import json

import numpy as np
import pytest

from research.evals import Result, bootstrap, compare, comparison_table, table


def result(values, weights=None, name="nll", field="tokens"):
  weights = [1] * len(values) if weights is None else weights
  records = [
    {"id": f"{i}:a", "nats": value, field: weight}
    for i, (value, weight) in enumerate(zip(values, weights, strict=True))
  ]
  metrics = {"loss": sum(values) / sum(weights), "items": len(values)}
  return Result(name, metrics, records, {"loss": ("nats", field)}, {"loss": (0.5, 1.25)}, ["> a"])


def test_json_round_trip():
  first = result([1.0, 2.0], [1, 3])
  assert Result.from_json(json.loads(json.dumps(first.to_json()))) == first
  with pytest.raises(ValueError, match="a saved result has .*, not \\['name'\\]"):
    Result.from_json({"name": "x"})


def test_compare_pairs_by_id_whatever_the_order():
  rng = np.random.default_rng(0)
  b, weights = rng.normal(5, 3, 40), list(range(1, 41))
  a = b + rng.normal(0.1, 0.01, 40)
  first, second = result(list(a), weights), result(list(b), weights)
  second.records.reverse()
  (found,) = compare(first, second, seed=1)
  expected, low, high = bootstrap.paired(a, b, seed=1, weights=weights)
  assert (found.result, found.metric) == ("nll", "loss")
  assert found.first - found.second == found.difference == pytest.approx(expected)
  assert found.interval == pytest.approx((low, high))


def test_compare_without_enough_items_gives_no_interval():
  (found,) = compare(result([1.0]), result([0.5]))
  assert (found.difference, found.interval) == (0.5, None)


def test_compare_refuses_what_is_not_the_same():
  with pytest.raises(ValueError, match="only 2 of 2 and 3 items are the same"):
    compare(result([1.0, 2.0]), result([1.0, 2.0, 3.0]))
  with pytest.raises(ValueError, match="loss counts other tokens"):
    compare(result([1.0, 2.0], [1, 2]), result([1.0, 2.0], [1, 3]))


@pytest.mark.parametrize("turned", [False, True])
def test_compare_is_over_items_where_both_have_the_value(turned):
  rng = np.random.default_rng(0)
  a, b, weights = rng.normal(5, 3, 9), rng.normal(4, 3, 9), rng.integers(1, 9, 9).tolist()
  given = []
  for values, lacks in ((a, (0, 4)), (b, (4, 7, 8))):
    one = result(values.tolist(), weights)
    for i in lacks:
      del one.records[i]["nats"]
    given.append(one)
  (found,) = compare(*(given[::-1] if turned else given))
  both, over = [1, 2, 3, 5, 6], np.array(weights)[[1, 2, 3, 5, 6]]
  expected = [values[both].sum() / over.sum() for values in ((b, a) if turned else (a, b))]
  assert [found.first, found.second] == pytest.approx(expected)
  assert found.difference == found.first - found.second and found.items == 5
  low, high = found.interval
  assert low < found.difference < high
  for i in both:
    del given[0].records[i]["nats"]
  assert compare(*given) == []


def test_compare_leaves_out_what_only_one_has():
  other = dataclasses.replace(result([1.0, 2.0]), means={})
  assert compare(result([1.0, 2.0]), other) == []


def test_table():
  assert table([result([1.0, 2.0])]).splitlines() == [
    "          value     95 % interval",
    "-------  ------  ----------------",
    "nll",
    "  loss   1.5000  [0.5000, 1.2500]",
    "  items       2",
  ]


def test_comparison_table():
  lines = comparison_table(compare(result([2.0, 4.0]), result([1.0, 3.0])), "a", "b").splitlines()
  assert lines[0].split() == ["a", "b", "difference", "95", "%", "interval"]
  assert lines[3].split() == ["loss", "3.0000", "2.0000", "+1.0000", "[+1.0000,", "+1.0000]"]
