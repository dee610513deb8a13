"""A progress bar in a terminal, and Ctrl-C as the cancel button."""

from __future__ import annotations

import sys

from tqdm import tqdm

BAR = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"

_open: set[TerminalBar] = set()


class TerminalBar:
    """A progress bar on stderr, and in a log file a line every ten seconds at most."""

    def __init__(self, total: int, title: str = "", quiet: bool = False) -> None:
        self._tqdm = tqdm(
            total=total,
            desc=title,
            bar_format=BAR,
            disable=quiet,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )
        _open.add(self)

    def show(self, done: int, text: str = "") -> None:
        """Draw that `done` units are finished."""
        if text:
            self._tqdm.set_postfix_str(text, refresh=False)
        self._tqdm.update(done - self._tqdm.n)
        if done >= (self._tqdm.total or 0):
            self.close()

    def close(self) -> None:
        """Draw it for the last time, with an end of line."""
        self._tqdm.close()
        _open.discard(self)


def close_bars() -> None:
    """Close the bars that whoever drew them left open, as by an error: what is printed next begins a line."""
    for bar in [*_open]:
        bar.close()
