"""Transformers without its bars and advice, for the time of one block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bars and only errors from transformers while the block runs; restored afterwards."""
    from transformers.utils import logging as hf_logging

    before, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    logger_level = logging.getLogger("transformers").level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)
        logging.getLogger("transformers").setLevel(logger_level)
        if bars:
            hf_logging.enable_progress_bar()
