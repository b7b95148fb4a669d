"""The quantisation scheme: names, refused values, group sizes of odd layers."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from quota.errors import QuotaError
from quota.scheme import FromFile, QuantizationScheme, bits_named


def test_the_default_is_w4a4kv4_everywhere() -> None:
    scheme = QuantizationScheme()
    assert scheme.name == "W4A4KV4"
    assert scheme.modules == ("tower", "projector", "decoder")
    assert (scheme.weight_group, scheme.activation_group, scheme.hadamard) == (64, 32, 64)


def test_a_scheme_is_frozen_and_hashable() -> None:
    scheme = QuantizationScheme()
    with pytest.raises(ValidationError):
        scheme.weight_bits = 8  # type: ignore[misc]
    assert len({scheme, QuantizationScheme(), QuantizationScheme(kv_bits=2)}) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight_bits", 3),
        ("activation_bits", 2),
        ("kv_bits", 5),
        ("weight_group", 48),
        ("activation_group", 512),
        ("hadamard", 3),
        ("weight_rounding", "best"),
        ("transforms", "best"),
        ("modules", ()),
        ("modules", ("tower", "head")),
        ("colour", "red"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(field: str, value: object) -> None:
    with pytest.raises(QuotaError, match=field) as caught:
        QuantizationScheme(**{field: value})
    assert "\n" not in str(caught.value)


def test_two_schemes_are_equal_only_if_every_field_is() -> None:
    changes = {
        "weight_bits": 8,
        "weight_group": 32,
        "activation_bits": 8,
        "activation_group": 16,
        "kv_bits": 8,
        "head_bits": 4,
        "embedding_bits": 16,
        "hadamard": 0,
        "weight_rounding": "rtn",
        "transforms": "hadamard",
        "modules": ("decoder",),
    }
    assert set(changes) == set(QuantizationScheme.model_fields)
    schemes = {QuantizationScheme(**{field: value}) for field, value in changes.items()}
    assert len(schemes | {QuantizationScheme()}) == len(changes) + 1


def test_equality_survives_json_and_the_order_of_modules() -> None:
    scheme = QuantizationScheme(modules=("decoder", "tower"))
    assert scheme.modules == ("tower", "decoder")
    assert QuantizationScheme.model_validate_json(scheme.model_dump_json()) == scheme


@pytest.mark.parametrize("others", [{}, {"activation_bits": 4}, {"activation_bits": 8}], ids=str)
def test_activations_alone_are_not_quantised(others: dict[str, int]) -> None:
    with pytest.raises(QuotaError, match="'activation_bits': must be 16 with 16-bit weights"):
        QuantizationScheme(weight_bits=16, **others)
    assert QuantizationScheme(weight_bits=16, activation_bits=16).name == "W16A16KV4"


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        pytest.param({}, (8, 8), id="default"),
        pytest.param({"weight_bits": 8, "activation_bits": 8}, (8, 8), id="8 bits"),
        pytest.param({"weight_bits": 16, "activation_bits": 16}, (16, 16), id="the cache alone"),
        pytest.param({"modules": ("tower",)}, (16, 16), id="no decoder"),
        pytest.param({"modules": ("tower",), "head_bits": 4}, (4, 16), id="as it says"),
    ],
)
def test_both_ends_have_8_bits_where_the_decoder_has_few(fields: dict[str, Any], bits: tuple[int, int]) -> None:
    scheme = QuantizationScheme(**fields)
    assert (scheme.head_bits, scheme.embedding_bits) == bits


class OfAFile(BaseModel):
    scheme: Annotated[QuantizationScheme, FromFile]


def test_a_file_that_does_not_speak_of_the_ends_left_them_in_16_bits() -> None:
    scheme = QuantizationScheme(head_bits=16, embedding_bits=16)
    older = scheme.model_dump(exclude={"head_bits", "embedding_bits"})
    assert OfAFile(scheme=older).scheme == scheme
    assert OfAFile(scheme=QuantizationScheme().model_dump()).scheme == QuantizationScheme()


@given(st.integers(1, 20_000), st.sampled_from([1, 16, 64, 256]))
def test_groups_are_the_largest_power_of_two_that_fits_and_divides(in_features: int, limit: int) -> None:
    scheme = QuantizationScheme(weight_group=limit, activation_group=limit, hadamard=limit)
    expected = max(size for size in (2**n for n in range(9)) if size <= limit and in_features % size == 0)
    assert scheme.weight_group_for(in_features) == expected
    assert scheme.activation_group_for(in_features) == expected
    assert scheme.hadamard_for(in_features) == expected


def test_no_rotation_stays_no_rotation() -> None:
    assert QuantizationScheme(hadamard=0).hadamard_for(256) == 0


@pytest.mark.parametrize("name", ["w4a4", "W4A8", "w4a8kv4", "W8A8KV8", "w16a16kv2", "w4a16kv16"])
def test_a_short_name_says_the_bits(name: str) -> None:
    scheme = QuantizationScheme(**bits_named(name))
    assert scheme.name.startswith(name.upper())
    assert QuantizationScheme(**bits_named(scheme.name)) == scheme
    assert scheme.kv_bits == 4 or "kv" in name.lower()


@pytest.mark.parametrize("name", ["", "w4", "a4", "w4a4kv", "w4a4 ", "w4a4kv4x", "w-4a4", "w4a444", "int4"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(QuotaError, match="there is no scheme"):
        bits_named(name)


def test_bits_that_there_are_none_of_are_refused() -> None:
    with pytest.raises(QuotaError, match="weight_bits"):
        QuantizationScheme(**bits_named("w3a4"))
