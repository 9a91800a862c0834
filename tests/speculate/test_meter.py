"""The account of what speculation costs and loses, by hand."""

import pytest

from sparsedraft.speculate.policy.budget import LossBudget
from sparsedraft.speculate.policy.means import Recent
from sparsedraft.speculate.policy.meter import Meter
from sparsedraft.speculate.policy.protocol import Outcome
from sparsedraft.stages.evaluate.speedup import expected_length


def test_plain_steps_of_uneven_length_are_not_speculations_loss() -> None:
    """Every fourth takes twice as long: a drafter that paid nothing so far may still be tried."""
    meter = Meter(8)
    for i in range(200):
        meter.observe(Outcome(0, 0, 1, 0.0, 2.0 if i % 4 == 0 else 1.0))
    assert meter.budget.lost == 0 and meter.allowed(3) == 1


def test_recent_values_by_hand() -> None:
    recent = Recent()
    assert recent.value is None
    for value, mean in ((4.0, 4.0), (2.0, 2.0), (100.0, 3.0), (5.0, 11 / 3)):
        recent.add(value)
        assert recent.value == pytest.approx(mean), "without the highest"
    for _ in range(7):
        recent.add(1.0)
    assert recent.value == 1, "of seven"


def test_what_many_rows_take_does_not_judge_one() -> None:
    """A step of 8 rows takes three times as long as one of 1 (at which no K pays: half a step for each draft)."""
    meter, rows = Meter(8), {8: 3.0, 1: 1.0}
    for n, plain in rows.items():
        meter.observe(Outcome(0, 0, 1, 0.0, 9.0, begins=True, prompt=True, rows=n))
        for _ in range(12):
            meter.observe(Outcome(0, 0, 1, 0.0, plain, rows=n))
            meter.observe(Outcome(2, 1, 2, 1.0, plain + 1.0, rows=n))
        assert meter.estimates.plain == plain and meter.estimates.seconds(2) == pytest.approx(plain + 1.0)
    meter.observe(Outcome(0, 0, 1, 0.0, 3.0, rows=9))
    assert meter.estimates.plain == 3.0 and meter.estimates.seconds(2) == pytest.approx(4.0), (
        "known from before: about as many rows"
    )


def test_what_the_drafter_reads_late_is_not_its_drafts_price() -> None:
    """Hundred tokens at 0.01, four drafts at 0.1; what speculation saved before pays for it."""
    meter = Meter(8)
    meter.begin(100, 10000)
    meter.budget.READING_SHARE = 0.0
    meter.observe(Outcome(1, 1, 2, 2.1, 9.0, begins=True, prompt=True, late=100))
    assert meter.estimates.costs.reading.value is None, "as a draft's price is not known yet"
    meter.observe(Outcome(0, 0, 1, 0.0, 1.0))
    for _ in range(5):
        meter.observe(Outcome(4, 4, 5, 0.4, 1.4))
        assert meter.estimates.costs.reading.value == pytest.approx(0.02)
    assert meter.budget.lost == -meter.budget.GAINS and meter.budget.saved == pytest.approx(
        5 * 3.6 - meter.budget.GAINS - 2.1
    ), "with the prompt: the price of its draft was not known"
    meter.observe(Outcome(0, 0, 1, 0.0, 1.0, behind=100))
    meter.observe(Outcome(4, 0, 1, 1.4, 2.4, late=100))
    assert meter.estimates.costs.draft.value == pytest.approx(
        0.1
    ) and meter.estimates.costs.reading.value == pytest.approx(0.015, rel=0.03)
    assert meter.budget.lost == pytest.approx(-meter.budget.GAINS + 0.4) and meter.budget.saved == pytest.approx(
        5 * 3.6 - meter.budget.GAINS - 3.1
    )
    for _ in range(9):
        meter.observe(Outcome(4, 0, 1, 1.4, 2.4, late=100))
    assert meter.estimates.costs.draft.value == pytest.approx(0.1), "however often"
    meter.budget.saved, meter.budget.lost = 0.0, 0.0
    meter.estimates.acceptance.sum = meter.estimates.acceptance.weight  # as good as it was
    meter.observe(Outcome(0, 0, 1, 0.0, 1.0, behind=1000))
    assert meter.allowed(2) == 0, "ten steps' time"
    meter.budget.saved = 20.0
    assert meter.allowed(2) == 2
    for _ in range(100):
        meter.observe(Outcome(4, 4, 5, 0.4, 1.4))
    assert meter.budget.saved == 50, "plain steps, and no more"
    meter.observe(Outcome(4, 4, 5, 100.0, 101.0, late=100))
    assert meter.estimates.costs.reading.value < 0.04, "what the machine held up is not how fast the drafter reads"


def test_a_drafter_that_was_asked_and_drafted_nothing_has_a_price() -> None:
    meter = Meter(8)
    meter.observe(Outcome(0, 0, 1, 0.0, 1.0))
    for _ in range(2):
        assert not meter.estimates.knows_drafts
        meter.observe(Outcome(0, 0, 1, 0.1, 1.1, asked=True))
    assert (
        meter.estimates.knows_drafts
        and meter.estimates.costs.draft.value == pytest.approx(0.1)
        and meter.budget.lost == pytest.approx(0.2)
    )
    before = meter.budget.saved
    meter.observe(Outcome(0, 0, 1, 0.6, 1.6, asked=True, late=50))
    assert meter.estimates.costs.reading.value == pytest.approx(0.01) and meter.budget.lost == pytest.approx(0.3)
    assert meter.budget.saved == pytest.approx(before - 0.5 + LossBudget.READING_SHARE * 1.6)


def test_a_price_that_is_too_high_is_put_right_by_what_is_read_late() -> None:
    """Drafts took four times as long for a while; trials alone, each with much to read, find out that they do not."""
    meter = Meter(8)
    meter.observe(Outcome(0, 0, 1, 0.0, 1.0))
    for _ in range(3):
        meter.observe(Outcome(1, 0, 1, 0.4, 1.4))
    for _ in range(7):
        meter.observe(Outcome(3, 0, 1, 0.3 + 0.3, 1.6, late=30))
    assert meter.estimates.costs.draft.value == pytest.approx(0.2), "at most: reading included"


def test_a_machine_that_slept_gives_no_credit() -> None:
    """A step of an hour is not an hour of which speculation may lose its share."""
    meter = Meter(8)
    for seconds in (1.0, 1.0, 3600.0, 1.0):
        meter.observe(Outcome(0, 0, 1, 0.0, seconds))
    assert meter.budget.spent < 10


def test_meter_by_hand() -> None:
    meter = Meter(8)
    meter.observe(Outcome(3, 1, 2, 9.0, 99.0, begins=True, prompt=True))  # acceptance counts, time does not
    assert (
        meter.estimates.acceptance.value == 0.5
        and meter.estimates.plain is None
        and meter.measures_target
        and not meter.estimates.knows_drafts
        and meter.budget.spent == 0
    )
    meter.observe(Outcome(0, 0, 1, 0.0, 2.0))
    meter.observe(Outcome(4, 4, 5, 0.4, 3.4))
    assert meter.estimates.plain == 2 and meter.estimates.costs.draft.value == pytest.approx(0.1)
    assert meter.budget.lost == pytest.approx(3.4 - 5 * 2)
    assert [meter.estimates.seconds(k) for k in (0, 2, 4)] == pytest.approx([2, 2.2, 2.4]), (
        "once: it may have been held up"
    )
    meter.observe(Outcome(4, 4, 5, 0.4, 3.4))
    assert [meter.estimates.seconds(k) for k in (0, 2, 4, 6)] == pytest.approx([2, 2.5 + 0.2, 3 + 0.4, 3.5 + 0.6])
    a = meter.estimates.tokens(1) - 1  # the acceptance that it reckons with: between the prior and all nine drafts' own
    assert meter.estimates.PRIOR_ACCEPTANCE < a < 1
    assert meter.estimates.tokens(2, 0.5) == pytest.approx(expected_length(0.5, 2), abs=0.05)
    assert meter.reach == 8, "twice four, and no more than k_max"
    assert meter.budget.lost == -meter.budget.GAINS * 2, "more than that it may not lose again"
    share = LossBudget.READING_SHARE * (2.0 + 3.4 + 3.4)
    assert meter.budget.saved == pytest.approx(share + 2 * (5 * 2 - 3.4) - meter.budget.GAINS * 2)
    assert meter.budget.spent == 0


def test_a_loss_is_paid_off_by_plain_steps_and_a_trial_must_be_affordable() -> None:
    meter = Meter(8)
    meter.observe(Outcome(0, 0, 1, 0.0, 1.0))
    meter.observe(Outcome(1, 0, 1, 0.5, 1.5))  # nothing accepted: half a step lost
    assert meter.budget.lost == pytest.approx(0.5) and meter.best == 1, "one rejected draft is no verdict"
    while meter.allowed(1) or meter.measures_target:
        meter.observe(Outcome(0, 0, 1, 0.0, 1.0) if meter.measures_target else Outcome(1, 0, 1, 0.5, 1.5))
    assert meter.budget.lost <= meter.budget.CREDIT + 0.5, (
        "the credit is used up, and the last lost more than was expected"
    )
    lost, one, three = (
        meter.budget.lost,
        *(meter.estimates.seconds(k) - meter.estimates.tokens(k) for k in (1, meter.TRIAL)),
    )
    assert 0 < one < three
    while meter.allowed(1) == 0:
        meter.observe(Outcome(0, 0, 1, 0.0, 1.0))
    sooner = meter.budget.spent
    assert lost + one <= meter.budget.CREDIT + LossBudget.SHARE * sooner, "no more than it may lose by then"
    assert meter.allowed(0) == 0, "three drafts cost more"
    while meter.allowed(0) == 0:
        meter.observe(Outcome(0, 0, 1, 0.0, 1.0))
    assert meter.allowed(0) == meter.TRIAL
    assert sooner < meter.budget.spent and lost + three <= meter.budget.CREDIT + LossBudget.SHARE * meter.budget.spent


def test_a_place_has_its_own_rate() -> None:
    """Of four drafts the first is accepted half of the time, and then all others are: as in easy and hard text."""
    meter = Meter(8)
    for i in range(400):
        accepted = 4 * (i % 2)
        meter.observe(Outcome(4, accepted, accepted + 1, 0.4, 1.4, asked=True))
    estimates = meter.estimates
    for k in range(1, 5):
        assert estimates.tokens(k) == pytest.approx(1 + k / 2, rel=0.1)
    assert estimates.tokens(8) > 4.2, "and so on"
    assert expected_length(estimates.accepted, 1) > 1.7, "one for all"


def test_first_steps_that_no_plain_step_follows_are_not_kept_for_ever() -> None:
    """As on a server whose answers have one token: every step is the first of some text."""
    meter = Meter(8, reads_freely=True)
    for _ in range(1000):
        meter.observe(Outcome(0, 0, 1, 0.0, 1.0, begins=True, read=5, rows=4))
    assert len(meter._prompts) == meter.UNBOOKED
    meter.observe(Outcome(0, 0, 1, 0.0, 1.0, rows=4))
    assert not meter._prompts and meter.budget.elapsed > meter.UNBOOKED
