"""Attention implementations behind one interface. A leaf: it imports nothing else of attnbench."""

from .api import Implementation, Layout, Option, OptionValue, RefusedError, Tensors, WrongBackendError
from .limits import Device, Limit, Limits, Support, at_least, at_most, one_of
from .problem import CAUSAL, ELEMENT_BYTES, FULL, AttentionProblem, Dtype, Mask, Pass
from .registry import (
    BrokenImplementationError,
    OptionError,
    UnknownImplementationError,
    choices,
    get,
    load_plugin,
    names,
    near,
    register,
)

__all__ = [
    "CAUSAL",
    "ELEMENT_BYTES",
    "FULL",
    "AttentionProblem",
    "BrokenImplementationError",
    "Device",
    "Dtype",
    "Implementation",
    "Layout",
    "Limit",
    "Limits",
    "Mask",
    "Option",
    "OptionError",
    "OptionValue",
    "Pass",
    "RefusedError",
    "Support",
    "Tensors",
    "UnknownImplementationError",
    "WrongBackendError",
    "at_least",
    "at_most",
    "choices",
    "get",
    "load_plugin",
    "names",
    "near",
    "one_of",
    "register",
]
