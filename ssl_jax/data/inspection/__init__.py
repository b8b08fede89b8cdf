"""Looks at every image of a data set, and says what that means for a config."""

from ssl_jax.data.inspection.facts import Advice, Inspection
from ssl_jax.data.inspection.look import inspect

__all__ = ["Advice", "Inspection", "inspect"]
