"""The learning rate over a run."""

from collections.abc import Sequence
from math import cos, pi

from veilset.training.params import TrainingParams


def learning_rate(params: TrainingParams, peak: float, done: float) -> float:
    """The learning rate of a step.

    Args:
        params: They name the schedule.
        peak: Its highest learning rate.
        done: Share of all steps that are done, 0..1.
    """
    if params.schedule == "constant":
        return peak
    if params.schedule == "multi_step":
        return multi_step(done, peak, params.milestones, params.decay)
    return one_cycle(done, peak)


def one_cycle(done: float, peak: float) -> float:
    """The learning rate of a one-cycle schedule (Smith and Topin 2018; cosine as in fastai).

    Args:
        done: Share of all steps that are done, 0..1.
        peak: Highest learning rate, reached at a quarter of the steps.

    Returns:
        It rises from peak/25 along a cosine, and falls along one to peak/10,000.
    """
    rise = 0.25
    low, high, part = (peak / 25, peak, done / rise)
    if done >= rise:
        low, high, part = (peak, peak / 1e4, (done - rise) / (1 - rise))
    return low + (high - low) * (1 - cos(pi * part)) / 2


def multi_step(done: float, peak: float, milestones: Sequence[float], decay: float) -> float:
    """The learning rate of a schedule that falls in steps (He et al. 2016, section 4.2).

    Args:
        done: Share of all steps that are done, 0..1.
        peak: The learning rate before the first milestone.
        milestones: Shares of all steps.
        decay: Factor at each milestone.
    """
    return peak * decay ** sum(done >= milestone for milestone in milestones)
