"""The contract of an implementation: one class, one method to write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from .limits import Device, Limits, Support
from .problem import AttentionProblem, Pass

Layout = Literal["BHSD", "BSHD"]
OptionValue = str | int | float | bool


class Tensors(NamedTuple):
    """Query, key and value in the implementation's own layout and kind."""

    query: Any
    key: Any
    value: Any


@dataclass(frozen=True)
class Option:
    """A setting of an implementation that YAML may give: its default, and the values allowed (any of its type if none)."""

    default: OptionValue
    allowed: tuple[OptionValue, ...] = ()

    def accepts(self, value: object) -> bool:
        """Whether a value from YAML may be given for this option."""
        if self.allowed:
            return any(value == each and type(value) is type(each) for each in self.allowed)
        if isinstance(self.default, int) and not isinstance(self.default, bool):
            return isinstance(value, int) and not isinstance(value, bool) and value > 0
        return type(value) is type(self.default)

    @property
    def words(self) -> str:
        """What is allowed, for an error message."""
        if self.allowed:
            return " or ".join(map(str, self.allowed))
        return "a positive integer" if type(self.default) is int else f"a {type(self.default).__name__}"


class Implementation(ABC):
    """One way to compute attention. Set `name`, write `prepare`, put `@register` above the class.

    The wrapper is a forward only: the harness owns backward. An implementation may refuse a problem, with its reasons;
    it may never bend it, and never falls back to another.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    layout: ClassVar[Layout] = "BHSD"
    limits: ClassVar[Limits] = Limits()
    options: ClassVar[Mapping[str, Option]] = {}
    #: The distribution whose version is recorded.
    package: ClassVar[str] = "torch"
    #: Raised when the meaning of the implementation changes, so that old figures are not compared with new ones.
    revision: ClassVar[int] = 1
    #: True where `from_torch` copies or its arrays are immutable: the check then prepares anew after changing the inputs, and
    #: work that `prepare` does ahead of the call is not seen by it, only where the call beats physics.
    copies_inputs: ClassVar[bool] = False
    #: True where one call can be traced operator by operator; False for compiled or non-torch code.
    traced: ClassVar[bool] = True
    #: True where `prepare` compiles each shape for seconds: the contract suite then tries a selection of its cases.
    compiled: ClassVar[bool] = False
    #: The implementation whose `prepare` this one runs with its GPU package's kernels in an interpreter on the CPU. Only test
    #: adapters set it: their cells are checked, and never timed.
    emulates: ClassVar[str] = ""

    def __init__(self, **given: OptionValue) -> None:
        self._given = given

    def option(self, name: str) -> OptionValue:
        """The value of an option: as given, or its default."""
        return self._given.get(name, self.options[name].default)

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """Every reason why nothing at all can run here: device, package, kernels. Torch-free; imports no wrapped package."""
        return self.limits.device_refusals(device)

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Truthy, or all the reasons why this problem cannot run here. Torch-free."""
        refusals = self.limits.refusals(problem, passes, device)
        return Support(tuple(dict.fromkeys((*self.unavailable(device), *refusals))))

    @abstractmethod
    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Import, plan, build masks, compile; return the call that is timed.

        The call takes nothing, reads `tensors` anew each time and returns the output in this implementation's layout:
        `[B, Hq, Sq, D]` or `[B, Sq, Hq, D]`.
        """

    def from_torch(self, tensor: Any) -> Any:
        """A torch tensor in this implementation's layout, as the kind of array it computes on. Outside the clock."""
        return tensor

    def as_torch(self, output: Any) -> Any:
        """The output as a torch tensor, for the check. Outside the clock."""
        return output

    def context(self) -> AbstractContextManager[Any]:
        """What must hold while the call runs, such as a pinned backend. Entered outside the clock."""
        return nullcontext()

    def backend(self, operators: frozenset[str]) -> str | None:
        """The backend that really ran, told from the operators that one traced call dispatched; None if that says nothing.

        Raise `WrongBackendError` where it is not the one that was asked for.
        """
        return None


class RefusedError(RuntimeError):
    """Raised in `prepare` or the call: this cannot run here, for the reason given. Ends as UNSUPPORTED."""


class WrongBackendError(RuntimeError):
    """Another backend ran than the one that was asked for."""
