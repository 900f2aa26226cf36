"""Fitting one law of one device: smooth part, correction, and what both are worth on shapes they have not
seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.fit.families import FAMILIES, argument_names, arguments, choices
from calibrate.fit.resident import resident_rows
from calibrate.fit.smooth import SmoothLaw
from calibrate.fit.surface import Surface
from hwprofiles import HardwareProfile, Law, Points, Source
from hwprofiles.law_block import MAX_POINTS
from hwprofiles.schema import HeldOut
from simulator.steptime.law_form import log2

__all__ = ["LawFit", "error_summary", "shape_numbers"]

Vector = NDArray[np.float64]

UNTESTED_SPREAD = 0.15
"""Spread of a law whose data hold a single shape, so that none could be held out."""
QUANTILES = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)


class LawFit:
    """The law of one family and dtype on one device.

    *folds* is the number of parts the shapes are dealt into for the held-out error (never more than there are
    shapes); *seed* deals them. *shape* are the columns whose rows are held out together, *least_rows* the rows from
    which a correction is fitted; both default to the family's.
    """

    def __init__(
        self,
        family: str,
        profile: HardwareProfile,
        dtype: str,
        variant: str = "",
        folds: int = 8,
        seed: int = 0,
        shape: tuple[str, ...] = (),
        least_rows: int | None = None,
    ) -> None:
        self.family, self.profile, self.dtype, self.variant = family, profile, dtype, variant
        self.folds, self.seed = folds, seed
        self.shape = shape or FAMILIES[family].shape
        self.least_rows = FAMILIES[family].least_rows if least_rows is None else least_rows

    def fit(self, frame: pd.DataFrame) -> Self:
        """Fit on the rows of *frame* (all of them: exclude resident ones before)."""
        frame = frame.reset_index(drop=True)
        best = min(
            (self._held_out(frame, choice) for choice in choices(self.family, self.variant)),
            key=lambda outcome: _cost(*outcome),
        )
        self.choice_, self.logs_ = best
        self.judged_ = self._judged(frame, len(self.logs_))
        self.smooth_, self.surface_ = self._fit_once(frame, self.choice_)
        self.range_ = self._range(frame)
        self.shapes_ = int(shape_numbers(self.family, frame, self.shape).max()) + 1
        self.points_ = some_points(self.family, frame)
        return self

    def predict(self, frame: pd.DataFrame) -> Vector:
        """Seconds of every row."""
        return _predict(self.family, self.smooth_, self.surface_, frame)

    def law(self, source: Source) -> Law:
        """The block of a profile; measurements go along only where they are of this very device."""
        coefficients = self.smooth_.coefficients_
        errors = np.sqrt(np.maximum(np.diag(np.asarray(self.smooth_.covariance_)), 0.0))
        return Law(
            family=self.family,  # type: ignore[arg-type]
            dtype=self.dtype,
            variant=self.variant,
            form=FAMILIES[self.family].form,
            coefficients={name: float(f"{value:.6g}") for name, value in coefficients.items()},
            standard_errors={
                name: float(value * error)
                for (name, value), error in zip(coefficients.items(), errors, strict=True)
            },
            covariance=self.smooth_.covariance_,
            residual=None if self.surface_ is None else self.surface_.residual(),
            spread=robust_spread(self.judged_) if len(self.judged_) else UNTESTED_SPREAD,
            quantiles={
                str(level): _round(np.quantile(self.judged_, level))
                for level in QUANTILES
                if len(self.judged_)
            },
            range=self.range_,
            held_out=self._summary() if len(self.judged_) else None,
            points=self.points_ if source.kind == "measured" else None,
            source=source,
        )

    def _judged(self, frame: pd.DataFrame, count: int) -> Vector:
        """Held-out ln(measured / predicted) of rows that stream from memory, as in serving."""
        streams = ~resident_rows(self.family, frame, self.profile)
        return self.logs_[streams] if count == len(frame) and streams.any() else self.logs_

    def _summary(self) -> HeldOut:
        mean, median, p90 = error_summary(np.expm1(-self.judged_))
        columns = ", ".join(self.shape)
        folds = min(self.folds, self.shapes_)
        return HeldOut(
            mean_ape=_round(mean),
            median_ape=_round(median),
            p90_ape=_round(p90),
            rows=len(self.judged_),
            split=f"{folds}-fold over {self.shapes_} shapes ({columns})",
        )

    def _held_out(
        self, frame: pd.DataFrame, choice: Mapping[str, float]
    ) -> tuple[Mapping[str, float], Vector]:
        """(choice, ln(measured / predicted) of every row by a fit that did not see its shape)."""
        shapes = shape_numbers(self.family, frame, self.shape)
        parts = np.random.default_rng(self.seed).permutation(int(shapes.max()) + 1) % self.folds
        fold = parts[shapes]
        logs = np.full(len(frame), np.nan)
        for part in np.unique(fold):
            seen, unseen = frame[fold != part], frame[fold == part]
            if len(seen):
                smooth, surface = self._fit_once(seen, choice)
                predicted = _predict(self.family, smooth, surface, unseen)
                logs[fold == part] = np.log(unseen["seconds"].to_numpy(float) / predicted)
        return choice, logs[np.isfinite(logs)]

    def _fit_once(self, frame: pd.DataFrame, choice: Mapping[str, float]) -> tuple[SmoothLaw, Surface | None]:
        smooth = SmoothLaw(self.family, self.profile, self.dtype, choice)
        smooth.fit(frame, shape_numbers(self.family, frame, self.shape))
        if len(frame) < self.least_rows or not FAMILIES[self.family].axes:
            return smooth, None
        logs = np.log(frame["seconds"].to_numpy(float) / smooth.predict(frame))
        surface = Surface(FAMILIES[self.family].axes)
        return smooth, surface.fit(_coordinates(self.family, smooth, frame), logs)

    def _range(self, frame: pd.DataFrame) -> dict[str, tuple[float, float]]:
        columns = [name for name in frame.columns if name not in NOT_SHAPE and frame[name].dtype.kind == "f"]
        return {name: (float(frame[name].min()), float(frame[name].max())) for name in columns}


NOT_SHAPE = ("seconds", "line")


def some_points(family: str, frame: pd.DataFrame, most: int = MAX_POINTS) -> Points:
    """At most *most* rows of *frame*, from the quickest to the slowest in even steps."""
    order = np.argsort(frame["seconds"].to_numpy(float), kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))]
    columns = zip(argument_names(family), arguments(family, frame), strict=True)
    return Points(
        arguments={name: _shared(column[picked].tolist()) for name, column in columns},
        seconds=[_round(value) for value in frame["seconds"].to_numpy(float)[picked]],
    )


def _shared(values: list[float]) -> list[float]:
    return values[:1] if len(set(values)) == 1 else values


def shape_numbers(family: str, frame: pd.DataFrame, shape: tuple[str, ...] = ()) -> NDArray[np.int64]:
    """A number per row, the same for rows of one shape (columns; the family's by default), in order of appearance."""
    columns = frame[list(shape or FAMILIES[family].shape)]
    numbers, _ = pd.factorize(pd.MultiIndex.from_frame(columns))
    return np.asarray(numbers, dtype=np.int64)


def error_summary(errors: Vector) -> tuple[float, float, float]:
    """(mean, median, 90th percentile) of the absolute values of relative *errors*."""
    size = np.abs(errors)
    return float(size.mean()), float(np.median(size)), float(np.quantile(size, 0.9))


def _cost(choice: Mapping[str, float], logs: Vector) -> float:
    """Held-out error; that of an exception from streaming counts a little more, so that noise does not choose it."""
    error = float(np.mean(np.abs(np.expm1(-logs)))) if len(logs) else 0.0
    return error * (1.0 if choice.get("cached", 1.0) == 1.0 else 1.0 + EARNED)


EARNED = 0.02
"""Share of the error by which it must be better."""


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def robust_spread(logs: Vector) -> float:
    """Half the distance between the 16th and the 84th percentile: a standard deviation that outliers do not
    move."""
    low, high = np.quantile(logs, [0.1587, 0.8413])
    return _round((high - low) / 2.0)


def _coordinates(family: str, smooth: SmoothLaw, frame: pd.DataFrame) -> list[Vector]:
    values = smooth.law().coordinates(*arguments(family, frame))
    return [np.asarray(log2(np.asarray(value, dtype=float))) for value in values]


def _predict(family: str, smooth: SmoothLaw, surface: Surface | None, frame: pd.DataFrame) -> Vector:
    law = smooth.law()
    seconds = np.asarray(law.smooth(*arguments(family, frame)), dtype=float)
    if surface is not None:
        seconds = seconds * np.exp(surface.predict(_coordinates(family, smooth, frame)))
    floor = np.asarray(law.floor(*arguments(family, frame)), dtype=float)
    return np.asarray(np.maximum(seconds, floor))
