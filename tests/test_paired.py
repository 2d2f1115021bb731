"""The paired gate's rule and its statistics, against other sources and on drawn pairs. Pure functions alone."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attnbench.harness.exit_codes import Exit, of_judgements
from attnbench.harness.gate.session import WORK_UNITS
from attnbench.harness.gate.simulation import CELLS, modelled_noise, simulate
from attnbench.harness.measure.timing import Budget, Span, Work, sample
from attnbench.harness.verdicts.binomial import lower_bound, upper_bound
from attnbench.harness.verdicts.judgement import Judgement, Verdict
from attnbench.harness.verdicts.pair import Pair, Series
from attnbench.harness.verdicts.paired import (
    CONFIRM_PAIRS,
    FLOOR,
    NOISY_CONFIRM_PAIRS,
    SCREEN_PAIRS,
    Direction,
    Looks,
    contamination,
    flags_of,
    holm,
    is_screened,
    looking_slower,
    rule,
    wanted_after,
)
from attnbench.harness.verdicts.signed_rank import FEWEST_FOR_INTERVAL, p_above, shift_of

TOLD = {Verdict.REGRESSED: Verdict.IMPROVED, Verdict.IMPROVED: Verdict.REGRESSED}
NO_NOISE = 0.0005


def by_all_signs(values: Sequence[float], floor: float) -> float:
    """The p-value by its definition: the share of all choices of signs whose sum of ranks is as large."""
    excess = [value - floor for value in values]
    ranks = stats.rankdata([abs(each) for each in excess])
    found = sum(rank for rank, each in zip(ranks, excess, strict=True) if each > 0)
    sums = [sum(chosen) for chosen in itertools.product(*((0.0, rank) for rank in ranks))]
    return sum(each >= found - 1e-9 for each in sums) / len(sums)


def of_effects(effects: Sequence[float], *, typical: float = 0.0) -> tuple[Pair, ...]:
    """Pairs with these effects; `typical` is what the typical effect is beyond them."""
    return tuple(Pair(each, each + typical, (1.0, math.exp(each))) for each in effects)


def drawn(generator: random.Random, shift: float, noise: float) -> Pair:
    """A pair of a comparison whose truth is `shift`; each arm takes a time of its own."""
    return of_effects([shift + generator.gauss(0, noise) - generator.gauss(0, noise)])[0]


def moments(seed: int, shifts: Sequence[float], noise: float) -> Iterator[dict[str, Series]]:
    """Every moment of a sweep that is measured as the schedule would: pairs of a screen beside fresh ones."""
    generator = random.Random(seed)
    series = {str(at): Series() for at in range(len(shifts))}
    while True:
        wanted = wanted_after(series)
        unscreened = fewest({key: len(each.screen) for key, each in series.items() if not is_screened(each)})
        lacking = fewest({key: len(each.after) for key, each in series.items() if len(each.after) < wanted[key]})
        if not (unscreened or lacking):
            return
        for key in (*unscreened, *lacking):
            old, pair = series[key], drawn(generator, shifts[int(key)], noise)
            is_fresh = key in lacking
            series[key] = Series(old.screen, (*old.after, pair)) if is_fresh else Series((*old.screen, pair))
            yield dict(series)


def fewest(counts: Mapping[str, int]) -> list[str]:
    """The keys of the smallest counts."""
    return [key for key, count in counts.items() if count == min(counts.values())]


def measured(seed: int, shifts: Sequence[float], noise: float) -> dict[str, Series]:
    """A sweep that is measured to its end."""
    *_, last = moments(seed, shifts, noise)
    return last


def verdicts(series: Mapping[str, Series]) -> dict[str, Verdict]:
    """What the rule says."""
    return {key: each.verdict for key, each in rule(series).items()}


# Statistics


@pytest.mark.parametrize("count", [6, 8, 9, 13, 16, 24])
def test_signed_rank_agrees_with_scipy(count: int) -> None:
    """Without ties the p-value is that of scipy's exact test, in both tails."""
    generator = random.Random(count)
    for shift in (-0.02, 0.0, 0.01, 0.03):
        values = [generator.gauss(shift, 0.01) for _ in range(count)]
        expected = stats.wilcoxon([each - FLOOR for each in values], alternative="greater", method="exact")
        assert p_above(values, FLOOR) == pytest.approx(expected.pvalue, rel=1e-12)


@given(st.lists(st.integers(-4, 5), min_size=1, max_size=9), st.integers(-1, 2))
@settings(deadline=None, max_examples=60)
def test_signed_rank_of_ties_and_values_on_the_floor(values: list[int], floor: int) -> None:
    """Ties share their rank in the distribution as well; a value on the floor keeps its rank and counts as below."""
    assert p_above(values, floor) == pytest.approx(by_all_signs(values, floor), rel=1e-12)


def test_values_on_the_floor_are_no_evidence() -> None:
    """Where everything lies on the floor the p-value is 1, in both directions."""
    assert p_above([FLOOR] * 8, FLOOR) == 1.0
    assert p_above([-each for each in [FLOOR] * 8], -FLOOR) == 1.0


@given(st.integers(0, 10_000), st.integers(FEWEST_FOR_INTERVAL, 24), st.floats(-0.03, 0.03))
@settings(deadline=None, max_examples=100)
def test_interval_and_test_say_the_same(seed: int, count: int, shift: float) -> None:
    """The interval lies above a floor exactly where the signed rank beyond it has a p-value of at most 2.5 %."""
    generator = random.Random(seed)
    values = [generator.gauss(shift, 0.01) for _ in range(count)]
    found = shift_of(values)
    means = [(a + b) / 2 for at, a in enumerate(values) for b in values[at:]]
    assert found.shift == statistics.median(means)
    assert found.low <= found.shift <= found.high
    assert (found.low > FLOOR) == (p_above(values, FLOOR) <= 0.025)
    assert (found.high < -FLOOR) == (p_above([-each for each in values], FLOOR) <= 0.025)


@pytest.mark.parametrize("count", [6, 8, 16])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_interval_covers_the_shift(count: int, tails: str) -> None:
    """The interval of 95 % holds the truth in at least that share of draws, less three deviations of the count itself."""
    generator, draws, covering = random.Random(count), 1500, 0
    for _ in range(draws):
        scale = [1.0 if tails == "normal" else generator.expovariate(1) for _ in range(count)]
        found = shift_of([0.02 + generator.gauss(0, 0.01 * each) for each in scale])
        covering += found.low <= 0.02 <= found.high
    assert covering / draws >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


def test_interval_needs_six_values() -> None:
    """Five values have no interval of 95 %, and that is an error rather than a narrow interval."""
    with pytest.raises(ValueError, match="5 values"):
        shift_of([0.0] * (FEWEST_FOR_INTERVAL - 1))


@given(st.lists(st.one_of(st.floats(0, 0.02), st.sampled_from([0.0025, 0.005, 0.01, 1.0])), max_size=6))
@settings(deadline=None)
def test_holm_is_the_closed_test_of_bonferroni(values: list[float]) -> None:
    """A hypothesis is rejected where Bonferroni rejects every intersection that holds it: what Holm's procedure is short for."""
    p_values = {(str(at), Direction.SLOWER): p for at, p in enumerate(values)}
    level = 0.01

    def is_rejected(key: tuple[str, Direction]) -> bool:
        others = [each for each in p_values if each != key]
        families = [(key, *some) for size in range(len(p_values)) for some in itertools.combinations(others, size)]
        return all(min(p_values[each] for each in family) <= level / len(family) for family in families)

    assert holm(p_values, level) == {key for key in p_values if is_rejected(key)}


@given(st.integers(1, 60), st.data())
@settings(deadline=None)
def test_bounds_of_a_rate_agree_with_scipy(of: int, data: st.DataObject) -> None:
    """Clopper and Pearson's bounds are quantiles of the beta distribution."""
    found = data.draw(st.integers(0, of))
    upper = 1.0 if found == of else stats.beta.ppf(0.95, found + 1, of - found)
    lower = 0.0 if found == 0 else stats.beta.ppf(0.05, found, of - found + 1)
    assert upper_bound(found, of) == pytest.approx(upper, abs=1e-9)
    assert lower_bound(found, of) == pytest.approx(lower, abs=1e-9)


def test_bounds_of_nothing_tried_exclude_nothing() -> None:
    """Of no trial, any rate is possible; of 300 trials without one, less than 1 % is."""
    assert (lower_bound(0, 0), upper_bound(0, 0)) == (0.0, 1.0)
    assert 0.0099 < upper_bound(0, 300) < 0.01


# The rule


@given(
    st.integers(0, 10**6), st.lists(st.sampled_from([-0.1, -0.03, 0.0, 0.01, 0.05]), min_size=1, max_size=4),
    st.sampled_from([NO_NOISE, 0.005, 0.02]),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_swapped_arms_mirror_the_verdicts(seed: int, shifts: list[float], noise: float) -> None:
    """Base and candidate exchanged: the same pairs are wanted, effects change their sign, slower is faster and all else stays."""
    for series in [
        *itertools.islice(moments(seed, shifts, noise), 0, None, 1 + len(shifts)),
        measured(seed, shifts, noise),
    ]:
        swapped = {key: of.mirrored() for key, of in series.items()}
        assert wanted_after(swapped) == wanted_after(series)
        for key, ruling in rule(series).items():
            other = rule(swapped)[key]
            assert other.verdict is TOLD.get(ruling.verdict, ruling.verdict)
            assert (other.effect is None) == (ruling.effect is None)
            if ruling.effect and other.effect:
                turned = other.effect.mirrored()
                assert (turned.shift, turned.low, turned.high) == pytest.approx(
                    (ruling.effect.shift, ruling.effect.low, ruling.effect.high), abs=1e-12
                )


@pytest.mark.parametrize("percent", [5, 10, 100])
def test_planted_slowdown_is_found(percent: int) -> None:
    """In low noise a slower candidate is REGRESSED in every draw, a faster one IMPROVED, and its neighbour stays EQUIVALENT."""
    shift = math.log1p(percent / 100)
    for seed in range(20):
        series = measured(seed, [shift, -shift, 0.0], 0.003)
        rulings = rule(series)
        assert [each.verdict for each in rulings.values()] == [
            Verdict.REGRESSED,
            Verdict.IMPROVED,
            Verdict.EQUIVALENT,
        ]
        effect = rulings["0"].effect
        assert effect is not None
        assert effect.low > FLOOR
        assert f"pairs: slower by {100 * math.expm1(effect.shift):.1f} % [" in rulings["0"].reason


@pytest.mark.parametrize("noise", [NO_NOISE, 0.005, 0.01])
def test_three_percent_is_never_equivalent(noise: float) -> None:
    """+3 % may not be found where it is noisy, yet is never said to be the same, at no moment of the sweep."""
    for seed in range(20):
        for series in moments(seed, [math.log(1.03)], noise):
            assert verdicts(series)["0"] is not Verdict.EQUIVALENT


def test_identical_code_is_equivalent() -> None:
    """Identical code in low noise is EQUIVALENT after the screen, with no more pairs wanted; exactly equal times as well."""
    for seed in range(20):
        series = measured(seed, [0.0] * 8, 0.002)
        assert set(verdicts(series).values()) == {Verdict.EQUIVALENT}
        assert not any(each.after for each in series.values())
    same = {"0": Series(of_effects([0.0] * SCREEN_PAIRS))}
    assert verdicts(same) == {"0": Verdict.EQUIVALENT}
    assert "within 1 %" in rule(same)["0"].reason


def test_a_wide_screen_goes_on() -> None:
    """What 8 pairs do not flag and are too wide to call equal is screened by 16; what these do not flag stays INCONCLUSIVE."""
    wide = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, -0.1]
    series = Series(of_effects(wide))
    assert not is_screened(series)
    assert rule({"0": series})["0"].reason == "8 of 16 pairs of the screen were measured"
    assert wanted_after({"0": series}) == {"0": 0}
    still = Series(of_effects([*wide, *[0.04, -0.04] * 4]))
    assert is_screened(still)
    assert not flags_of(still)
    assert wanted_after({"0": still}) == {"0": 0}
    ruling = rule({"0": still})["0"]
    assert ruling.verdict is Verdict.INCONCLUSIVE
    assert ruling.reason.startswith("16 pairs: ")
    assert "nor within 1 %" in ruling.reason
    slower = Series(of_effects([*wide, *[0.04] * 8]))
    assert [flag.name for flag in flags_of(slower)] == ["SLOWER"]
    assert wanted_after({"0": slower}) == {"0": NOISY_CONFIRM_PAIRS}


@given(
    st.integers(0, 10**6), st.lists(st.sampled_from([-0.05, 0.0, 0.03, 0.1]), min_size=1, max_size=4),
    st.sampled_from([0.003, 0.012]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_less_measured_says_less(seed: int, shifts: list[float], noise: float) -> None:
    """At no moment before its end is a comparison called slower or faster that would not be called so at the end."""
    end = verdicts(measured(seed, shifts, noise))
    for series in moments(seed, shifts, noise):
        for key, verdict in verdicts(series).items():
            assert verdict not in TOLD or verdict is end[key]
            assert is_screened(series[key]) or verdict is Verdict.INCONCLUSIVE


def test_nothing_measured_is_inconclusive() -> None:
    """No pair, seven of the screen, and a flag without its fresh pairs: INCONCLUSIVE, with what is missing in its reason."""
    slower = of_effects([0.2] * SCREEN_PAIRS)
    mixed = of_effects([0.2] * 7 + [0.0])
    rulings = rule({"a": Series(), "b": Series(slower[:7]), "c": Series(slower), "d": Series(mixed, slower[:7])})
    assert {each.verdict for each in rulings.values()} == {Verdict.INCONCLUSIVE}
    assert rulings["a"].reason == "0 of 8 pairs of the screen were measured"
    assert rulings["b"].reason == "7 of 8 pairs of the screen were measured"
    assert "16 fresh pairs were asked for" in rulings["c"].reason
    assert "7 pairs: slower by 22.1 %" in rulings["d"].reason


def test_an_effect_is_the_median_of_its_turns() -> None:
    """A change of speed from turn to turn leaves it alone, and so do samples that were disturbed, and one whole turn."""
    speeds = [1.0, 1.0, 1.5, 0.7, 3.0]
    base = [(speed, 1.3 * speed, 1.1 * speed) for speed in speeds]
    candidate = [(2.0 * speed, 1.05 * speed, 1.2 * speed) for speed in speeds]
    candidate[2] = (4.0, 5.0)  # disturbed all along
    pair = Pair.of_turns(base, candidate)
    assert pair.effect == pytest.approx(math.log(1.05))
    assert pair.typical == pytest.approx(math.log(1.2 / 1.1))
    assert pair.medians_s[0] == pytest.approx(1.3)
    mirrored = Pair.of_turns(candidate, base)
    assert (mirrored.effect, mirrored.typical) == pytest.approx((-pair.effect, -pair.typical))
    assert (pair.mirrored().effect, pair.mirrored().medians_s) == (-pair.effect, mirrored.medians_s)
    with pytest.raises(ValueError, match="shorter"):
        Pair.of_turns(base, candidate[:-1])


def test_a_clock_that_says_zero_gives_a_number() -> None:
    """Where a sample took no time at all there is still an effect, and it is finite."""
    assert math.isfinite(Pair.of_turns([(0.0,)], [(1e-3,)]).effect)


def test_fresh_pairs_alone_decide() -> None:
    """However large the screen's effect, null fresh pairs make it EQUIVALENT, and its effect is that of the fresh pairs."""
    generator = random.Random(0)
    fresh = of_effects([generator.gauss(0, 0.002) for _ in range(CONFIRM_PAIRS)])
    ruling = rule({"0": Series(of_effects([2.0] * SCREEN_PAIRS), fresh)})["0"]
    assert ruling.verdict is Verdict.EQUIVALENT
    assert ruling.effect is not None
    assert abs(ruling.effect.shift) < 0.002
    opposite = rule({"0": Series(of_effects([2.0] * SCREEN_PAIRS), of_effects([-0.2] * CONFIRM_PAIRS))})["0"]
    assert opposite.verdict is Verdict.INCONCLUSIVE  # faster was not asked
    assert "not confirmed by fresh pairs" in opposite.reason


def test_typical_samples_that_contradict_say_nothing() -> None:
    """Confirmed by the fastest samples, while the typical ones say the opposite: INCONCLUSIVE, with both in the reason."""
    for direction in (1, -1):
        flagged, fresh = (of_effects([0.1 * direction] * count, typical=-0.2 * direction) for count in (8, 8))
        ruling = rule({"0": Series(flagged, fresh)})["0"]
        assert ruling.verdict is Verdict.INCONCLUSIVE
        assert "yet typical samples are" in ruling.reason


def test_what_is_slower_in_some_calls_is_not_equal() -> None:
    """Where the fastest samples are equal and the typical ones are 5 % slower, nothing is called equal, and that is said."""
    ruling = rule({"0": Series(of_effects([0.0] * SCREEN_PAIRS, typical=math.log(1.05)))})["0"]
    assert ruling.verdict is Verdict.INCONCLUSIVE
    assert "yet typical samples are slower by 5.0 %" in ruling.reason
    within = rule({"0": Series(of_effects([0.0] * SCREEN_PAIRS, typical=math.log(1.005)))})["0"]
    assert within.verdict is Verdict.EQUIVALENT


def test_a_little_beyond_the_floor_is_neither() -> None:
    """An effect that straddles the floor is neither slower nor equal, however little it varies."""
    values = [FLOOR + 0.001 * sign for sign in (1, -1) * 4]
    assert verdicts({"0": Series(of_effects(values), of_effects(values * 2))}) == {"0": Verdict.INCONCLUSIVE}


#: Pairs that are slower, pairs that are not, and a screen that flags with one of these among those.
SLOWER, SAME = of_effects([0.05] * 30), of_effects([0.0] * 30)
MIXED = (*SLOWER[:7], SAME[0])


@pytest.mark.parametrize("direction", Direction)
def test_the_early_look_counts_every_pair(direction: Direction) -> None:
    """Where all pairs of a screen and a few fresh ones lie beyond the floor, that settles it, whatever else is still measured."""
    slower, same = of_effects([0.05 * direction] * 30), SAME
    said = Verdict.REGRESSED if direction is Direction.SLOWER else Verdict.IMPROVED
    settled = Series(slower[:8], slower[:5])
    others = {str(at): Series(same[:at]) for at in range(1, 8)}
    assert wanted_after({"0": settled, **others})["0"] == 5
    ruling = rule({"0": settled, **others})["0"]
    assert ruling.verdict is said
    assert ruling.reason.startswith("13 pairs: ")
    assert rule({"0": settled, **others}, is_contaminated=True)["0"].verdict is Verdict.INCONCLUSIVE
    for left in (
        Series(slower[:8], slower[:4]),
        Series(slower[:8], (*slower[:4], same[0])),
        Series((*slower[:7], same[0]), slower[:5]),
    ):
        assert wanted_after({"0": left, **others})["0"] == CONFIRM_PAIRS
        assert rule({"0": left, **others})["0"].verdict is Verdict.INCONCLUSIVE


def test_the_early_look_is_of_the_whole_sweep() -> None:
    """Pairs in a row, each beyond the floor with an even chance, settle something in at most 2 of 1000 sweeps of any size."""
    for comparisons in (*range(1, 200), 500, 10_000):
        looks = Looks(comparisons, 1)
        assert 2 * comparisons * 2.0 ** -(SCREEN_PAIRS + looks.early) <= 0.002
    assert [Looks(comparisons, 1).early for comparisons in (1, 8, 60)] == [4, 5, 8]


def test_what_looks_slower() -> None:
    """All pairs so far beyond the floor, three at least, and not yet enough of them; neither what is faster nor what is mixed."""
    faster = of_effects([-0.05] * 30)
    series = {
        "two": Series(SLOWER[:2]), "three": Series(SLOWER[:3]), "faster": Series(faster[:7]),
        "fresh": Series(SLOWER[:8], SLOWER[:2]), "one": Series((*SLOWER[:3], SAME[0])), "both": Series((*SLOWER[:3], faster[0])),
        "late": Series(SLOWER[:8], SAME[:1]), "none": Series(), "same": Series(SAME[:3]),
        "settled": Series(SLOWER[:8], SLOWER[:8]),
    }  # fmt: skip
    assert looking_slower(series) == {"three", "fresh"}


def test_the_first_look_counts() -> None:
    """The first look comes at the fewest pairs that can pass it; what it settles asks for no more, what it leaves does."""
    assert [Looks(8, flags).first for flags in (1, 2, 4, 60)] == [8, 9, 10, 14]
    settled = Series(MIXED, SLOWER[:8])
    assert wanted_after({"0": settled}) == {"0": 8}
    assert verdicts({"0": settled}) == {"0": Verdict.REGRESSED}
    left = Series(MIXED, (*SLOWER[:7], SAME[0]))
    assert wanted_after({"0": left}) == {"0": CONFIRM_PAIRS}
    assert verdicts({"0": left}) == {"0": Verdict.INCONCLUSIVE}
    last = Series(MIXED, (*SLOWER[:7], SAME[0], *SLOWER[:8]))
    assert verdicts({"0": last}) == {"0": Verdict.REGRESSED}
    noisy = Series(of_effects([0.03, 0.06, 0.09, 0.12] * 2))
    assert wanted_after({"0": noisy}) == {"0": NOISY_CONFIRM_PAIRS}
    two = {"0": settled, "1": Series(MIXED, SLOWER[:8])}
    assert set(verdicts(two).values()) == {Verdict.INCONCLUSIVE}  # two flags: nine pairs each
    assert wanted_after(two) == {"0": CONFIRM_PAIRS, "1": CONFIRM_PAIRS}


def test_the_first_look_waits_for_every_screen() -> None:
    """Another flag would ask for more pairs; what the early look has settled keeps nobody waiting."""
    settled = Series(MIXED, SLOWER[:8])
    waiting = {"0": settled, "1": Series(SAME[:7])}
    assert verdicts(waiting)["0"] is Verdict.INCONCLUSIVE
    assert verdicts({"0": settled, "1": Series(SAME[:8])})["0"] is Verdict.REGRESSED
    beside = {"0": Series(SLOWER[:8], SLOWER[:4]), "1": Series(MIXED, SLOWER[:9])}
    assert set(verdicts(beside).values()) == {Verdict.REGRESSED}
    assert wanted_after(beside) == {"0": 4, "1": 9}


def test_one_slower_cell_of_sixty_is_found() -> None:
    """In a sweep of 60 cells one is 5 % slower: it alone is named, and the gate exits 10."""
    shifts = [0.0] * 60
    shifts[17] = math.log(1.05)
    said = verdicts(measured(3, shifts, 0.004))
    assert [key for key, verdict in said.items() if verdict in TOLD] == ["17"]
    assert said["17"] is Verdict.REGRESSED
    judgements = [Judgement(key, key, verdict, "") for key, verdict in said.items()]
    assert of_judgements(judgements) is Exit.REGRESSION
    del judgements[17]
    assert of_judgements(judgements) is Exit.PASS


def test_a_control_beyond_the_floor_contaminates() -> None:
    """Base against base beyond 1 % in either direction is contamination; within it, wide, or too few is not."""
    for direction in (1, -1):
        effect = contamination(of_effects([0.02 * direction] * 8))
        assert effect is not None
        assert effect.shift == pytest.approx(0.02 * direction)
    assert contamination(of_effects([0.005] * 8)) is None
    assert contamination(of_effects([0.05, -0.05] * 4)) is None
    assert contamination(of_effects([0.05] * 5)) is None


def test_simulated_sweeps_have_no_alarm() -> None:
    """300 sweeps of identical code under two speed states and heavy tails: no alarm, every verdict mirrored, intervals cover."""
    found = simulate(modelled_noise, 300, seed=1)
    assert found.sweeps == 300
    assert found.alarms == 0
    assert found.unmirrored == 0
    assert found.intervals == 300 * CELLS
    assert found.covering / found.intervals > 0.93
    assert simulate(modelled_noise, 20, seed=4) == simulate(modelled_noise, 20, seed=4)


def test_simulated_slowdown_is_found() -> None:
    """Under the same noise +10 % is found in nearly all sweeps and is never EQUIVALENT or IMPROVED."""
    found = simulate(modelled_noise, 40, math.log(1.10), seed=2)
    assert found.verdicts[Verdict.REGRESSED] >= 38
    assert set(found.verdicts) <= {Verdict.REGRESSED, Verdict.INCONCLUSIVE}


# The injected slowdown of a proof


@pytest.mark.parametrize("percent", [0, 3, 5, 10])
def test_work_is_whole_calls(percent: int) -> None:
    """One call more in so many is the slowdown that is named, within 0.05 %; any number asked for becomes whole units."""
    unit = WORK_UNITS[percent]
    work = Work(unit, int(percent > 0))
    for repeats in (1, unit - 1 or 1, unit, unit + 1, 3 * unit + 1):
        counted = work.counted(repeats)
        assert repeats <= counted < repeats + unit
        assert 100 * work.made(counted) / counted == pytest.approx(100 + percent, abs=0.05)


class Steady:
    """A clock by which every call takes a millisecond, and the region it times."""

    resolution_s, most_repeats = 1e-9, 1000

    def __init__(self) -> None:
        self.asked: list[int] = []

    def time(self, region: object, repeats: int) -> Span:
        """So many milliseconds."""
        self.asked.append(repeats)
        return Span(repeats * 1e-3, repeats * 1e-3)


def test_extra_work_is_timed_and_not_counted() -> None:
    """With one call more in twenty, a call of a millisecond is measured as 1.05: by work that was done, not by arithmetic."""
    clock = Steady()
    found = sample(clock, clock, Budget(0.0, 1.0, 0.01), Work(20, 1))  # type: ignore[arg-type]
    assert found.repeats == 20
    assert clock.asked[-1] == 21
    assert found.times_s == pytest.approx([1.05e-3] * len(found.times_s))


@pytest.mark.parametrize("cells", [60, 300, 500])
def test_a_sweep_of_any_size_can_regress(cells: int) -> None:
    """Where every cell is slower, each has as many pairs as Holm's procedure needs among so many."""
    series = {str(at): Series(of_effects([0.1] * 8), of_effects([0.1] * 24)) for at in range(cells)}
    assert {ruling.verdict for ruling in rule(series).values()} == {Verdict.REGRESSED}
    assert max(wanted_after(series).values()) <= 24
