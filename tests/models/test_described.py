import pytest

from ssl_jax import models


@pytest.mark.parametrize(
    "text, expected",
    [
        ("convnext_tiny", {"name": "convnext_tiny"}),
        ("resnet8(width=2.0, stages=(1, 1))", {"name": "resnet8", "width": 2.0, "stages": (1, 1)}),
        ("resnet8()", {"name": "resnet8"}),
    ],
)
def test_a_string_names_a_network_and_its_options(text, expected):
    assert models.described(text) == expected
    models.create(**models.described(text))


@pytest.mark.parametrize("text", ["", "resnet8(", "resnet8(2)", "resnet8(**{})", "resnet8(width=f(1))", "a.b(c=1)"])
def test_other_strings_are_refused(text):
    with pytest.raises(ValueError, match=r'is no network; write "NAME", or "NAME\(option=value, ...\)"'):
        models.described(text)
