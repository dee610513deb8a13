"""Solvers and sigma schedules: exact, batched, every row on its own schedule. Needs torch alone."""

from .integration import Callback, Frame, Plan, check_finite, integrate, prepare, start, step
from .schedules import FlowSchedule, Process, Schedule, TableSchedule, trajectory
from .solvers import SAMPLERS, Denoise, Sampler, State, Step

__all__ = [
    "SAMPLERS",
    "Callback",
    "Denoise",
    "FlowSchedule",
    "Frame",
    "Plan",
    "Process",
    "Sampler",
    "Schedule",
    "State",
    "Step",
    "TableSchedule",
    "check_finite",
    "integrate",
    "prepare",
    "start",
    "step",
    "trajectory",
]
