"""The timed-region contract, as every page prints it: what is inside the clock, what is outside, and what the numbers mean."""

from __future__ import annotations

from typing import Any

_ALLOCATORS = {
    "steady": "glibc maps blocks from 32 MiB on anew and keeps up to 64 MiB of freed heap, where its own adaptation ends "
              "in a long-lived process",
    "resident": "freed blocks stay mapped up to 1 GiB, as with jemalloc or tcmalloc",
    "system": "glibc's thresholds are untouched",
}  # fmt: skip


def timed_region(protocol: dict[str, Any], device: str) -> list[tuple[str, str]]:
    """(subject, sentence) pairs for a protocol and a device."""
    on_cuda = device.startswith("cuda")
    clock = (
        "CUDA events around each sample, behind a device-side sleep so that launching from Python is not timed; the "
        "host's time with synchronisation is stored beside them."
        if on_cuda
        else "perf_counter_ns around each sample; garbage collection is off."
    )
    allocator = protocol.get("allocator", "steady")
    return [
        ("forward", "Inside the clock: the attention call alone, under no_grad."),
        ("forward_backward", "Inside: the call, then torch.autograd.grad for query, key and value. Nothing accumulates."),
        ("backward", "Outside: fresh graphs, one a repetition. Inside: their gradients."),
        ("outside, always", "Imports, conversion, layout change, building of masks, planning, compilation and the first "
                            "call. They are recorded apart. Inputs are random normal, from the problem's seed alone."),
        ("clock", clock),
        ("sampling", f"Inner repeats until a sample lasts 1 ms; warm-up until two samples agree within 5 %; then at least "
                     f"{protocol.get('min_time_s')} s and at most {protocol.get('max_time_s')} s, until the median's "
                     f"interval is within {protocol.get('precision')} of it."),
        ("processes", "Each launch is a process of its own, forked from an interpreter that is new in each round. In a "
                      "round all cells run once, shuffled by the run's seed."),
        ("allocator", f"{allocator}: {_ALLOCATORS.get(allocator, 'unknown')}."),
        ("check", "Before the clock: values, and gradients where the pass has them, against float64, by a bound taken "
                  "from what an honest eager implementation errs in this dtype; again after it, on new inputs. What fails "
                  "is never ranked."),
        ("statistics", "A cell's time is the median of its launches' medians. Below 6 launches the range of launches is "
                       "shown, labelled so; from 6 on a 95 % bootstrap interval. Overlapping intervals are a tie."),
        ("void launches", "Repeated up to 3 times where a thread waited in the run queue for more than 2 % of the timed "
                          "span, or the machine throttled. The rule does not know the times. No sample is deleted."),
        ("memory", "Peak bytes beyond inputs and outputs, after the timing, in a call of its own. MB are 10^6 bytes."),
    ]  # fmt: skip
