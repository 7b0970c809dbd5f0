"""The chunked rule of bench/gdn_roundings.py is the rule, and what it says of roundings is what the kernels rely on."""

import pytest
import torch

from bench.gdn_errors import inputs, relative, rule_in_float64
from bench.gdn_roundings import FORMS, rounded


@pytest.mark.parametrize("case", ["decays as models have them", "keys of cosine 0.99, slow decay"])
def test_without_roundings_it_is_exact_and_two_summands_keep_the_state(case):
    torch.manual_seed(1)
    given = inputs(case)
    wanted = rule_in_float64(*given)

    def errors(form):
        return [relative(found, right) for found, right in zip(rounded(*given, form), wanted, strict=True)]

    assert max(errors({})) < 1e-12
    assert errors(FORMS["all, T in two summands"])[1] < 3e-3 < errors(FORMS["all"])[1]
