# SPDX-License-Identifier: Apache-2.0
"""The text of a completion as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lampo.engine.stop_strings import StopStrings
from lampo.sampling_params import SamplingParams
from lampo.text.detokenizer import StreamDecoder

if TYPE_CHECKING:
    from lampo.text.tokenizer import Tokenizer


class OutputText:
    """The tokens of a completion as text, up to a stop string.

    Args:
        params, stops: the request's; `stops` finds its stop strings, None without any.
        prompt_token_ids: the tokens before the text.
        tokenizer: the model's.

    Attributes:
        text: so far.
    """

    def __init__(
        self,
        params: SamplingParams,
        stops: StopStrings | None,
        prompt_token_ids: list[int],
        tokenizer: Tokenizer,
    ) -> None:
        self.text = ""
        self._stops = stops
        self._includes_stop = params.include_stop_str_in_output
        self._decoder = StreamDecoder(
            tokenizer,
            skip_special_tokens=params.skip_special_tokens,
            prompt_token_ids=prompt_token_ids,
        )
        self._state = 0  # of the stop strings
        self._num_taken = 0

    def push(self, token_id: int, *, ignore_stops: bool) -> str | None:
        """Adds a token. Returns: the stop string that it completes, at which the text now ends."""
        piece = self._decoder.push(token_id)
        return self._add(piece, ignore_stops) if piece else None

    def flush(self, *, ignore_stops: bool) -> str | None:
        """Adds the rest of incomplete characters, at the end. Returns: as :meth:`push`."""
        return self._add(self._decoder.flush(), ignore_stops)

    def take(self, *, final: bool) -> str:
        """The text since the last call that no later token can change; `final`: all of it."""
        end = len(self.text)
        if self._stops is not None and not final:
            end -= self._stops.held_back[self._state]  # it may begin a stop string
        piece = self.text[self._num_taken : end]
        self._num_taken = max(self._num_taken, end)
        return piece

    def _add(self, piece: str, ignore_stops: bool) -> str | None:
        self.text += piece
        if self._stops is None:
            return None
        self._state, stop, read = self._stops.advance(
            self._state, piece, ignore_matches=ignore_stops
        )
        if stop is not None:
            end = len(self.text) - len(piece) + read
            self.text = self.text[: end if self._includes_stop else end - len(stop)]
        return stop
