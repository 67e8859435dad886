"""Byte sizes and shares: what is read, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.units import BYTES_MAX, BadValue, Percent, format_size, nearest_existing, parse_cap, parse_size


@pytest.mark.parametrize(
    ("given_value", "nbytes"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("1B", 1),
        ("50GiB", 50 * 2**30),
        ("50 gib", 50 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("3TiB", 3 * 2**40),
        ("64KiB", 65536),
        ("50GB", 50 * 10**9),
        ("2 kB", 2000),
        ("1MB", 10**6),
        ("1TB", 10**12),
        ("1.5GiB", 3 * 2**29),
        ("  7 MiB ", 7 * 2**20),
        (BYTES_MAX, BYTES_MAX),
    ],
)
def test_sizes_that_are_read(given_value: object, nbytes: int) -> None:
    assert parse_size(given_value) == nbytes


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "GiB",
        "5G",
        "5 gigs",
        "-1",
        "1e9",
        "0x10",
        "1,5GiB",
        "10%",
        "\u0661GiB",
        "1GiB 2",
        -1,
        1.5,
        True,
        None,
        [],
        2**63,
    ],
)
def test_what_is_not_a_size(wrong: object) -> None:
    with pytest.raises(BadValue) as caught:
        parse_size(wrong)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["10%", " 10 % ", "0.5%", "100%"])
def test_a_share_stays_a_share(text: str) -> None:
    assert parse_cap(text) == Percent(float(text.strip(" %")))


@pytest.mark.parametrize("text", ["10%", "0.5%", "100%", "12.3456789%", "0.00001%", "99.999999999%"])
def test_a_share_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_cap(text)) == text


@pytest.mark.parametrize("text", ["0%", "101%", "-1%", "%", "ten%", "1e1%"])
def test_what_is_not_a_share(text: str) -> None:
    with pytest.raises(BadValue):
        parse_cap(text)


def test_a_share_is_taken_of_the_disk_that_will_hold_the_folder(tmp_path: Path) -> None:
    total = shutil.disk_usage(tmp_path).total
    assert Percent(25).of_disk(tmp_path / "not" / "yet" / "there") == total // 4


def test_nearest_existing_parent(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert nearest_existing(tmp_path) == tmp_path


@given(st.integers(0, 2**20), st.sampled_from([1, 2**10, 2**20, 2**30, 2**40]))
def test_whole_sizes_survive_being_written_and_read(number: int, factor: int) -> None:
    text = format_size(number * factor)
    if "." not in text:
        assert parse_size(text) == number * factor
    else:
        assert parse_size(text) == pytest.approx(number * factor, rel=0.005, abs=7)
