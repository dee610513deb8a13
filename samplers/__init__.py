"""Solvers and sigma schedules. Needs torch alone."""
