"""Solvers and sigma schedules: exact, batched, every row on its own schedule. Needs torch alone."""

from .integration import Callback, SolverFrame, SolverPlan, check_finite, integrate, prepare, start, step
from .schedules import FlowSchedule, Process, Schedule, TableSchedule, trajectory
from .solvers import SAMPLERS, Denoise, Sampler, SolverState, Step
from .transfer import sent

__all__ = [
    "SAMPLERS",
    "Callback",
    "Denoise",
    "FlowSchedule",
    "Process",
    "Sampler",
    "Schedule",
    "SolverFrame",
    "SolverPlan",
    "SolverState",
    "Step",
    "TableSchedule",
    "check_finite",
    "integrate",
    "prepare",
    "sent",
    "start",
    "step",
    "trajectory",
]
