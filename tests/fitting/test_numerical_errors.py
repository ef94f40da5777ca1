"""Numbers that a record rejects are a FitError; other faults of a record are shown as they are."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from flops_fit_core import FitError
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.records import Law


@convert_numerical_errors
def make_law(**fields):
    return Law(**fields)


def test_a_parameter_that_is_not_finite_is_a_fit_error():
    with pytest.raises(FitError, match="do not determine the law"):
        make_law(name="chinchilla", parameters={"E": math.inf})


def test_a_field_of_the_wrong_type_is_not_reported_as_a_property_of_the_runs():
    with pytest.raises(ValidationError, match="parameters"):
        make_law(name="chinchilla", parameters="E")
